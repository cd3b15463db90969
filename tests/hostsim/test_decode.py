"""The sampling loop in one launch, on the simulated GPU, against the loop in torch operations: the same ids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastlstm
from fastlstm.backends.base import UnfitError
from fastlstm.backends.cuda import decode as cuda_decode
from fastlstm.testing import decoding
from tests.hostsim import backend as hostsim
from tests.hostsim.decoding import Run, decode, expected
from tests.sampling.models import Model, make_model

# V, E, H, L, P, bias
SIZES = [
    (2, None, 1, 1, 0, True),
    (21, 5, 17, 2, 0, True),
    (65, None, 33, 1, 0, False),
    (300, 3, 24, 3, 0, True),
    (7, 16, 129, 2, 0, True),
]
OPTIONS = [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.5}]


def assert_same(run: Run, model: Model) -> str:
    """Equal ids; state and log-probabilities as close as two orders of a float32 sum. Returns the plan."""
    drawn = decode(model, run)
    plan, right = fastlstm.last_plan(), expected(model, run)
    assert torch.equal(drawn.ids, right.ids), (drawn.ids.T, right.ids.T)
    torch.testing.assert_close(drawn.state, right.state, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(drawn.log_probs, right.log_probs, rtol=2e-5, atol=1e-4)
    return plan


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_launch_draws_as_the_definition(hostsim_library, size):
    """Options, streams, schedules and types of weights in rotation; a stop of two ids and one of one; a longer prime."""
    V, at = size[0], SIZES.index(size)
    for k, num in list(enumerate((1, 2, 3, 5, 9)))[at % 2 :: 2]:
        options = {"stop": [[0, 1], 3 % V] if num != 2 else [3 % V], **OPTIONS[(k + size[2]) % len(OPTIONS)]}
        dtype = torch.bfloat16 if k % 3 == 1 else None
        assert_same(Run(num, seed=k, length=6, sms=3 + 2 * k, dtype=dtype, options=options), make_model(*size))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_schedule_draws_the_same(hostsim_library, seed):
    """Streams that end on the way, in one pass and in two."""
    model = make_model(11, 4, 20, 2)
    for num in (4, 11):
        assert_same(Run(num, seed=seed, length=7, options={"stop": [[2], [1, 0]], "top_p": 0.9}), model)


def test_weights_that_do_not_fit_shared_memory_are_read_from_global_memory(hostsim_library):
    model = make_model(9, None, 129, 2)
    for num, shared_kib, kept in ((3, 227, "all weights"), (3, 99, "weights of 2 of 3"), (9, 20, "weights of 0 of 3")):
        assert kept in assert_same(Run(num, length=4, sms=9, shared_kib=shared_kib), model)


def test_more_streams_than_a_launch_takes_are_drawn_in_parts(hostsim_library):
    """And each with the noise of its own number."""
    model = make_model(5, None, 3, 1)
    plan = assert_same(Run(67, length=3, options={"stop": [4]}), model)
    assert plan == "hostsim: decode, 3 streams, 1 blocks, all weights on the chip of 67"


def test_an_automaton_forbids_ids(hostsim_library):
    """Its state goes from row to row; one that leads nowhere ends a stream with an error."""
    model = make_model(6, None, 9, 2)
    follows = torch.tensor([[1, 0, -1, -1, -1, 0], [-1, -1, 0, 1, 1, -1], [-1] * 6])
    for num in (1, 2, 5):
        assert_same(Run(num, length=8, options={"automaton": (follows, 0)}), model)
        run = Run(num, length=2, options={"automaton": (follows, 2)})
        with pytest.raises(ValueError, match="stream 0 has nothing to draw at step 0"):
            decode(model, run)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.nan])
def test_scores_that_are_not_finite_are_refused(hostsim_library, bad):
    model = make_model(5, None, 4, 1)
    model.out.bias.data[3] = bad
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="stream 0 has nothing to draw at step 0"):
            decode(model, Run(3, length=2, options={"temperature": temperature}))


def test_equal_scores_go_to_the_lower_id_and_minus_infinity_is_never_drawn(hostsim_library):
    """By top-k and top-p too; what is left of equal scores is drawn evenly by the same noise."""
    model = make_model(40, None, 4, 1)
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.zero_()
        model.out.bias[7:12] = 1.0
        model.out.bias[0] = -torch.inf
        model.out.bias[20] = -0.0
    for options in ({"temperature": 0}, {"top_k": 3}, {"top_p": 0.1}, {"top_k": 30, "top_p": 0.5}, {}):
        assert_same(Run(3, length=5, options=options), model)


def test_a_decoder_keeps_copies(hostsim_library):
    """Of the output bias too, which is float32 already."""
    model = make_model(5, None, 8, 1)
    with fastlstm.backend("hostsim"):
        right = fastlstm.decode(*model.args, [1], 6, seed=3).ids
        decoder = fastlstm.Decoder(*model.args)
        for p in (*model.rnn.parameters(), *model.out.parameters()):
            p.data.fill_(torch.nan)
        assert torch.equal(decoder.start([1], seed=3).draw(6).ids, right)


def test_a_launch_that_is_refused_changes_nothing_and_another_way_draws(hostsim_library, monkeypatch):
    """The second of two launches is refused: all streams are drawn in torch operations, from where they were."""
    model = make_model(5, None, 3, 1)
    right = expected(model, Run(67, length=4, options={"stop": [4]}))
    calls = []
    run = cuda_decode.run

    def refused(*args):
        calls.append(args)
        if len(calls) % 2 == 0 and len(calls) > 2:
            raise UnfitError("refused")
        run(*args)

    monkeypatch.setattr(cuda_decode, "run", refused)
    with fastlstm.backend("hostsim"):
        decoder = fastlstm.Decoder(*model.args)
        decoder._engine._requested = False
        drawing = decoder.start([1, 0, 1], num=67, stop=[4])
        ids = torch.cat([drawing.draw(2).ids, drawing.draw(2).ids])
    assert len(calls) == 4
    assert torch.equal(ids, right.ids)


def test_calls_in_pieces_draw_the_same(hostsim_library):
    """A Decoding that is drawn on, and a call that begins where another ended; stops reach across the seam."""
    model, how = make_model(4, None, 12, 2), {"num": 3, "seed": 5, "temperature": 1.3}
    with fastlstm.backend("reference"):
        whole = fastlstm.decode(*model.args, [1, 2], 12, stop=[[0, 3, 1], [2, 2]], **how)
        plain = fastlstm.decode(*model.args, [1, 2], 9, **how)
    with fastlstm.backend("hostsim"):
        drawing = fastlstm.Decoder(*model.args).start([1, 2], stop=[[0, 3, 1], [2, 2]], **how)
        pieces = torch.cat([drawing.draw(n).ids for n in (1, 4, 7)])
        first = fastlstm.decode(*model.args, [1, 2], 4, **how)
        state, prime = first.state, first.ids[-1:]
        second = fastlstm.decode(*model.args, prime, 5, state=state, position=4, **how)
    assert torch.equal(pieces, whole.ids)
    assert torch.equal(torch.cat([first.ids, second.ids]), plain.ids)


def test_one_block_fewer_than_planned_and_the_others_wait(hostsim_library, monkeypatch):
    """On a GPU they give up after the timeout; the simulation says that nobody writes what they wait for."""
    plan = cuda_decode.plan

    class Fewer:
        """A planner that leaves the last block out."""

        def __init__(self, lib):
            self.lib = lib

        def plan_decode(self, **sizes):
            return self.lib.plan_decode(**{**sizes, "H": sizes["H"] - 8})

    monkeypatch.setattr(cuda_decode, "plan", lambda lib, *args: plan(Fewer(lib), *args))
    with pytest.raises(hostsim.Fault, match=r"deadlock: [\s\S]*a load that other blocks answer"):
        decode(make_model(5, None, 24, 1), Run(1, length=2))


@pytest.mark.parametrize(
    ("size", "dtype", "reason"),
    [
        ((5, None, 8, 1, 3), None, "h is projected to 3 features"),
        ((5, None, 8, 17), None, "it has 17 layers, at most 16 fit"),
        ((5, None, 4000, 1), None, "shared memory"),
    ],
)
def test_a_model_that_no_launch_takes_is_refused_by_name(hostsim_library, size, dtype, reason):
    with fastlstm.backend("hostsim"), pytest.raises(fastlstm.BackendError, match=reason):
        fastlstm.Decoder(*make_model(*size).args, dtype=dtype)


def test_a_float64_model_is_refused_by_name(hostsim_library):
    model = make_model(5, None, 8, 1)
    model.rnn.double(), model.out.double()
    with fastlstm.backend("hostsim"), pytest.raises(fastlstm.BackendError, match=r"weights are torch\.float64"):
        fastlstm.Decoder(*model.args)


def test_plans_of_usual_models():
    """As few blocks as hold the weights on the chip; every block owns units."""
    lib = hostsim.library().plan

    def plan(
        L: int, H: int, B: int, *, sms: int = 132, shared_kib: int = 227, type_bytes: int = 4, longest_stop: int = 0
    ):
        sizes = {"L": L, "H": H, "V": 100, "B": B, "longest_stop": longest_stop}
        return lib.plan_decode(sms=sms, shared_bytes=shared_kib << 10, type_bytes=type_bytes, **sizes)

    small, usual, large = plan(1, 128, 1), plan(3, 512, 1), plan(2, 2048, 64)
    assert (small.blocks, small.units, small.everywhere, small.keeps_h) == (16, 8, 1, 1)
    assert (usual.blocks, usual.units) == (103, 5)
    assert [usual.place(l) >= 0 for l in range(4)] == [True] * 4
    assert (large.blocks, large.units, large.tile, large.keeps_h, large.everywhere) == (128, 16, 8, 0, 0)
    assert large.place(0) < 0
    assert plan(1, 128, 2, longest_stop=2).everywhere == 0
    for H in (1, 7, 129, 700, 1500):
        for B in (1, 3, 64):
            one = plan(2, H, B)
            assert one.bytes <= 227 << 10
            assert (one.blocks - 1) * one.units < H <= one.blocks * one.units
            assert one.blocks <= 132
    assert plan(1, 16, 65).bytes == 0


def test_verification_judges_the_launch(hostsim_library):
    """What `fastlstm doctor --verify` runs on a GPU: right on the simulated one; a wrong draw and a wrong state are found."""
    case, device = (
        decoding.DecodeCase("small", 2, 24, 11, 3, 5, options={"top_k": 7, "top_p": 0.9}),
        torch.device("cpu"),
    )
    small = {
        one.id: replace(one, H=9, length=8) for one in decoding.CASES if "stops" in one.id or "automaton" in one.id
    }
    stored = replace(case, stored=torch.bfloat16)
    for seed, one in enumerate((case, stored, *small.values())):
        errors = decoding.errors(hostsim.BACKEND, one, seed, device)
        assert set(errors) == {"ids", "h", "c", "log_probs"}
        assert all(error <= allowed for error, allowed in errors.values()), errors
    assert {case.id for case in decoding.CASES if decoding.unfit(hostsim.BACKEND, case, device)} == set()


@pytest.mark.parametrize(("marker", "old", "new", "wrong"), [("decode-least", "own < least", "own > least", "ids")])
def test_verification_finds_a_wrong_draw(hostsim_library, tmp_path, marker, old, new, wrong):
    """A launch that draws only what top-k and top-p leave out."""
    from tests.hostsim.mutations import ROW, Mutation
    from tests.hostsim.test_mutations import mutated

    csrc = mutated(Mutation(ROW, "decode", marker, old, new), "decode", tmp_path)
    case = decoding.DecodeCase("small", 1, 24, 11, 2, 5, options={"top_k": 5, "top_p": 0.9})
    with hostsim.settings(csrc=csrc, only=("decode",)):
        errors = decoding.errors(hostsim.BACKEND, case, 0, torch.device("cpu"))
    assert errors[wrong][0] > errors[wrong][1]
