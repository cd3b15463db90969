"""`fastlstm.decode` as a user calls it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.sampling import options
from tests.sampling.models import Loop, Model, make_model

SIZES = [(21, 5, 17, 2), (13, None, 33, 1), (30, 8, 24, 2, 9)]  # V, E, H, L, P


@pytest.fixture
def model() -> Model:
    return make_model(11, 4, 16, 2)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_argmax_is_a_loop_over_nn_lstm_in_float64(size: tuple, backend: str | None) -> None:
    model = make_model(*size)
    prime = torch.randint(size[0], (7, 4))
    with fastlstm.backend(backend):
        decoded = fastlstm.decode(*model.args, prime, 40, num=4, temperature=0)
    assert torch.equal(decoded.ids, Loop(model).argmax(prime, 40))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_log_probabilities_and_state_are_those_of_the_module(model: Model, backend: str | None) -> None:
    prime = torch.tensor([3, 1, 4])
    with fastlstm.backend(backend):
        ids, (h, c), log_probs = fastlstm.decode(*model.args, prime, 15, num=3, seed=2, temperature=0.6, log_probs=True)
    fed = torch.cat([prime[:, None].expand(-1, 3), ids[:-1]])
    scores, (h_n, c_n) = Loop(model).scores(fed)
    expected = scores.log_softmax(2)[2:].gather(2, ids[:, :, None])[:, :, 0]
    torch.testing.assert_close(log_probs.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((h.double(), c.double()), (h_n, c_n), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_draws_in_pieces_equal_one_draw(model: Model, backend: str | None) -> None:
    """Drawn 1, 2, 3, … at a time, with a stop of three ids that pieces cut, and an automaton."""
    follows = torch.randint(3, (3, 11))
    follows[:, ::4] = -1
    with fastlstm.backend(backend):
        decoder = fastlstm.Decoder(*model.args)
        free = decoder.start([1, 2], num=4, seed=9).draw(40).ids
        stop = [free[20:23, 1].tolist(), free[10:12, 2].tolist()]
        for more in ({"stop": stop}, {"automaton": (follows, torch.tensor([0, 1, 2, 0])), "stop": [5]}):
            whole = decoder.start([1, 2], num=4, seed=9, **more).draw(40, log_probs=True)
            drawing, pieces = decoder.start([1, 2], num=4, seed=9, **more), []
            for n in range(1, 10):
                pieces.append(drawing.draw(min(n, 40 - sum(range(n))), log_probs=True))
            assert torch.equal(torch.cat([p.ids for p in pieces]), whole.ids)
            assert torch.equal(torch.cat([p.log_probs for p in pieces]), whole.log_probs)
            assert torch.equal(pieces[-1].state[0], whole.state[0])
            assert torch.equal(pieces[-1].state[1], whole.state[1])
    assert (free[:, 1] != -1).all()


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
def test_a_long_prime_is_fed_in_pieces(model: Model, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    prime = torch.randint(11, (length,))
    expected = fastlstm.decode(*model.args, prime, 10, num=2)
    monkeypatch.setattr(options, "PRIME_ROWS_PER_CALL", 4)
    decoded = fastlstm.decode(*model.args, prime, 10, num=2)
    assert torch.equal(decoded.ids, expected.ids)
    assert torch.equal(decoded.state[0], expected.state[0])


@pytest.mark.parametrize("backend", [None, "reference"])
def test_state_and_position_continue_an_earlier_call(model: Model, backend: str | None) -> None:
    with fastlstm.backend(backend):
        whole = fastlstm.decode(*model.args, [1], 20, num=2, seed=4)
        first = fastlstm.decode(*model.args, [1], 8, num=2, seed=4)
        rest = fastlstm.decode(*model.args, first.ids[-1:], 12, num=2, seed=4, state=first.state, position=8)
    assert torch.equal(torch.cat([first.ids, rest.ids]), whole.ids)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_stream_does_not_depend_on_its_neighbours(model: Model, backend: str | None) -> None:
    with fastlstm.backend(backend):
        many = fastlstm.decode(*model.args, [1], 25, num=9, seed=4).ids
        alone = fastlstm.decode(*model.args, [1], 25, num=1, seed=4).ids
        assert torch.equal(many[:, :1], alone)
        assert len({tuple(column.tolist()) for column in many.t()}) == 9
        assert not torch.equal(fastlstm.decode(*model.args, [1], 25, num=1, seed=5).ids, alone)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_stop_ends_only_its_own_stream(model: Model, backend: str | None) -> None:
    """Ids are those of a run without, up to and with the stop, then -1; log-probabilities 0; nothing after the last end."""
    with fastlstm.backend(backend):
        free = fastlstm.decode(*model.args, [1], 60, num=5, seed=4).ids
        stop = free[3:5, 0].tolist()
        stopped = fastlstm.decode(*model.args, [stop[0]], 60, num=5, seed=4, stop=[stop, 7], log_probs=True)
        free = fastlstm.decode(*model.args, [stop[0]], 60, num=5, seed=4, log_probs=True)
    longest = 0
    for b in range(5):
        text = free.ids[:, b].tolist()
        ends = [k + 1 for k in range(60) if text[k] == 7 or (k > 0 and text[k - 1 : k + 1] == stop)]
        end = ends[0] if ends else 60
        longest = max(longest, end)
        assert stopped.ids[:end, b].tolist() == text[:end]
        assert (stopped.ids[end:, b] == -1).all()
        assert (stopped.log_probs[end:, b] == 0).all()
        torch.testing.assert_close(stopped.log_probs[:end, b], free.log_probs[:end, b])  # torch's sums know the batch
    assert len(stopped.ids) == longest < 60


@pytest.mark.parametrize("backend", [None, "reference"])
def test_an_automaton_says_what_may_come_next(model: Model, backend: str | None) -> None:
    """States 0 and 1 take turns: even ids, then odd ones."""
    follows = torch.full((2, 11), -1)
    follows[0, ::2], follows[1, 1::2] = 1, 0
    with fastlstm.backend(backend):
        ids = fastlstm.decode(*model.args, [1], 30, num=2, automaton=(follows, torch.tensor([0, 1]))).ids
        assert (ids[:, 0] % 2).tolist() == [0, 1] * 15
        assert (ids[:, 1] % 2).tolist() == [1, 0] * 15
        follows[1] = -1
        with pytest.raises(ValueError, match=r"stream 0 has nothing to draw at step 1: .* or all are forbidden"):
            fastlstm.decode(*model.args, [1], 30, automaton=(follows, 0))


def test_bfloat16_weights_draw_as_rounded_float32_ones(model: Model) -> None:
    """The table and the biases stay as they are."""
    rounded = make_model(11, 4, 16, 2)
    rounded.rnn.load_state_dict(model.rnn.state_dict())
    rounded.out.load_state_dict(model.out.state_dict())
    decoder = fastlstm.Decoder(*model.args, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, w in [*rounded.rnn.named_parameters(), *rounded.out.named_parameters()]:
            if "weight" in name and name not in ("embedding.weight", "lstm.weight_ih_l0"):
                w.copy_(w.bfloat16().float())
    for actual, expected in zip(
        decoder.start([1], num=3).draw(30, True),
        fastlstm.decode(*rounded.args, [1], 30, num=3, log_probs=True),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_float64_and_half_models_draw_the_same_ids(model: Model) -> None:
    """A float64 model runs in float64 torch operations; a half-precision one in float32 natively, on its rounded weights."""
    with torch.no_grad():
        for p in [*model.rnn.parameters(), *model.out.parameters()]:
            p.copy_(p.half())
    expected = fastlstm.decode(*model.args, [1], 30, num=2)
    double = Model(model.rnn.double(), model.out.double())
    decoded = fastlstm.decode(*double.args, [1], 30, num=2)
    assert decoded.state[0].dtype == torch.float64
    assert torch.equal(decoded.ids, expected.ids)
    with fastlstm.backend("cpu"), pytest.raises(fastlstm.BackendError, match=r"float64; give dtype=torch\.float32"):
        fastlstm.decode(*double.args, [1], 3)
    half = Model(double.rnn.half(), double.out.half())
    assert torch.equal(fastlstm.decode(*half.args, [1], 30, num=2).ids, expected.ids)


def test_a_restored_model_draws_the_same_ids(model: Model) -> None:
    """TokenLSTM's layers may be torch's own."""
    expected = fastlstm.decode(*model.args, [1], 20).ids
    fastlstm.restore(model.rnn)
    assert type(model.rnn.lstm) is nn.LSTM
    assert torch.equal(fastlstm.decode(*model.args, [1], 20).ids, expected)


def test_length_zero_and_draws_after_the_end_give_no_rows(model: Model) -> None:
    drawing = fastlstm.Decoder(*model.args).start([1], num=2, stop=list(range(11)))
    none = drawing.draw(0)
    assert none.ids.shape == (0, 2)
    assert none.log_probs is None
    assert not drawing.done
    assert drawing.draw(5).ids.shape == (1, 2)
    assert drawing.done
    assert drawing.draw(5).ids.shape == (0, 2)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"prime": []}, "prime is empty, expected at least one id"),
        ({"prime": [0, 11]}, r"prime holds 11, expected ids in 0 … 10"),
        ({"prime": [-1]}, r"prime holds -1, expected ids in 0 … 10"),
        ({"prime": [0.5]}, r"prime is torch.float32 .*, expected integers \(n,\) or \(n, 2\)"),
        ({"prime": torch.zeros(3, 5, dtype=torch.int64)}, r"prime has shape \[3, 5\], expected .* \(n, 2\)"),
        ({"length": -1}, "length is -1, expected an int of 0 or more"),
        ({"num": 0}, "num is 0, expected an int of 1 or more"),
        ({"temperature": -0.1}, "temperature is -0.1, expected a finite number"),
        ({"temperature": float("nan")}, "temperature is nan, expected a finite number"),
        ({"temperature": float("inf")}, "temperature is inf, expected a finite number"),
        ({"top_k": -1}, "top_k is -1, expected 0"),
        ({"top_k": 2.5}, "top_k is 2.5, expected 0"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a number above 0"),
        ({"top_p": 1.01}, "top_p is 1.01, expected a number above 0"),
        ({"seed": -1}, "seed is -1, expected an int"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616, expected an int"),
        ({"position": 1 << 63}, "position is 9223372036854775808, expected an int"),
        ({"temperature": "1"}, "temperature is '1', expected a finite number"),
        ({"stop": 3}, "stop is 3, expected a sequence"),
        ({"position": -3}, "position is -3, expected an int"),
        ({"stop": [11]}, r"stop holds \[11\], expected ids in 0 … 10"),
        ({"stop": [[]]}, r"stop holds \[\], expected ids in 0 … 10, at least one"),
        ({"automaton": (torch.zeros(2, 5, dtype=torch.int64), 0)}, r"automaton is torch.int64 with shape \[2, 5\]"),
        ({"automaton": (torch.full((2, 11), 2), 0)}, "expected integers .* below the number of states"),
        ({"automaton": (torch.zeros(2, 11, dtype=torch.int64), 2)}, "the automaton's start is 2, expected one state"),
        ({"state": (torch.zeros(2, 3, 16), torch.zeros(2, 3, 16))}, r"h has shape \[2, 3, 16\], expected"),
        ({"state": (torch.zeros(2, 2, 16), torch.zeros(2, 1, 16))}, "h is of 2 streams and c of 1"),
        ({"weight": torch.zeros(11, 15)}, r"weight is .* \[11, 15\] .*, expected floating \[11, 16\]"),
        ({"bias": torch.zeros(11, dtype=torch.int64)}, r"bias is torch.int64"),
        ({"dtype": torch.float16}, "dtype is torch.float16, expected torch.float32, torch.bfloat16 or None"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(model: Model, argument: dict, message: str) -> None:
    call = {"weight": model.out.weight, "bias": model.out.bias, "prime": [1], "length": 3, "num": 2, **argument}
    with pytest.raises(ValueError, match=message):
        fastlstm.decode(model.rnn, **call)


def test_numpy_s_integers_are_integers(model: Model) -> None:
    """As num, top_k, seed, position, length, stop and prime; stops as arrays and tensors too. A bool is no integer."""
    free = fastlstm.decode(*model.args, [1, 2], 40, num=2, seed=9, top_k=5, position=3)
    stop = [free.ids[20:23, 0].tolist(), [int(free.ids[30, 1])]]
    expected = fastlstm.decode(*model.args, [1, 2], 40, num=2, seed=9, top_k=5, position=3, stop=stop)
    i = np.int64
    for stops in (
        [np.array(stop[0]), stop[1][0]],
        [[i(v) for v in stop[0]], i(stop[1][0])],
        [torch.tensor(stop[0]), *stop[1]],
    ):
        got = fastlstm.decode(
            *model.args,
            np.array([1, 2]),
            i(40),
            num=np.int32(2),
            seed=np.uint64(9),
            top_k=i(5),
            position=i(3),
            stop=stops,
        )
        assert torch.equal(got.ids, expected.ids)
    single = [int(free.ids[7, 0])]
    assert torch.equal(
        fastlstm.decode(*model.args, [1, 2], 40, seed=9, stop=np.array(single)).ids,
        fastlstm.decode(*model.args, [1, 2], 40, seed=9, stop=single).ids,
    )
    for name in ("num", "seed", "top_k", "position"):
        with pytest.raises(ValueError, match=f"{name} is "):
            fastlstm.decode(*model.args, [1, 2], 4, **{name: np.True_})
        with pytest.raises(ValueError, match=f"{name} is "):
            fastlstm.decode(*model.args, [1, 2], 4, **{name: np.float64(2.0)})


def test_models_that_cannot_be_decoded_are_refused(model: Model) -> None:
    both = fastlstm.TokenLSTM(11, 4, 16, bidirectional=True)
    with pytest.raises(ValueError, match="bidirectional model cannot be decoded"):
        fastlstm.decode(both, torch.zeros(11, 32), None, [1], 3)
    with pytest.raises(TypeError, match=r"model is a LSTM, expected a fastlstm.TokenLSTM"):
        fastlstm.decode(model.rnn.lstm, model.out.weight, None, [1], 3)
    with (
        fastlstm.backend("triton"),
        pytest.raises(fastlstm.BackendError, match="backend 'triton' has no sampling loop"),
    ):
        fastlstm.decode(*model.args, [1], 3)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_decoder_keeps_copies_of_what_it_was_given(model: Model, backend: str | None) -> None:
    """Weights, prime, automaton and state may be changed, or freed, between draws."""
    prime, follows = torch.tensor([1, 2]), torch.zeros(1, 11, dtype=torch.int32)
    state = torch.randn(2, 16), torch.randn(2, 16)

    def drawn(spoil: bool) -> torch.Tensor:
        rnn, weight, bias = copy.deepcopy(model.rnn), model.out.weight.detach().clone(), model.out.bias.detach().clone()
        given = prime.clone(), follows.clone(), *(v.clone() for v in state)
        with fastlstm.backend(backend):
            drawing = fastlstm.Decoder(rnn, weight, bias).start(
                given[0], automaton=(given[1], 0), state=given[2:], seed=3
            )
            first = drawing.draw(4).ids
            for v in (*given, weight, bias, *rnn.parameters()) if spoil else ():
                v.data.fill_(10**6)
                v.untyped_storage().resize_(0)
            return torch.cat([first, drawing.draw(40).ids])

    assert torch.equal(drawn(spoil=True), drawn(spoil=False))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_every_negative_state_forbids(model: Model, backend: str | None) -> None:
    """Also the least of 64 bits, which is 0 in 32."""
    follows = torch.full((1, 11), -(2**63))
    follows[0, 4] = 0
    with fastlstm.backend(backend):
        assert fastlstm.decode(*model.args, [1], 9, automaton=(follows, 0)).ids.eq(4).all()


def test_weights_that_do_not_fit_are_refused(model: Model) -> None:
    model.rnn.lstm.weight_hh_l1 = nn.Parameter(torch.randn(64, 15))
    with pytest.raises(RuntimeError, match=r"weight_hh_l1 has shape \[64, 15\], expected \[64, 16\]"):
        fastlstm.Decoder(*model.args)
    freed = torch.randn(11, 16)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"weight is float32 with shape .*, and its storage has 0 bytes"):
        fastlstm.Decoder(make_model(11, 4, 16, 2).rnn, freed)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("around", ["device", "type"])
def test_a_default_of_the_users_changes_nothing(model: Model, around: str, backend: str | None) -> None:
    follows = torch.randint(-1, 2, (2, 11))
    follows[:, 3] = 1

    def draw() -> torch.Tensor:
        options = {"automaton": (follows, 1), "stop": [[3, 3, 3]], "seed": 5, "log_probs": True, "top_k": 4}
        return fastlstm.decode(*model.args, [3, 1, 4], 9, num=2, **options)

    with fastlstm.backend(backend):
        expected = draw()
        if around == "device":
            with torch.device("meta"):
                actual = draw()
        else:
            torch.set_default_dtype(torch.float64)
            try:
                actual = draw()
            finally:
                torch.set_default_dtype(torch.float32)
    for a, e in zip(
        (actual.ids, actual.log_probs, *actual.state), (expected.ids, expected.log_probs, *expected.state), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_a_start_that_is_no_integer_is_refused(model: Model) -> None:
    for start in (0.5, 1j, torch.tensor(1.0), [0.0]):
        with pytest.raises(ValueError, match=r"the automaton's start is .*, expected one state"):
            fastlstm.decode(*model.args, [1], 3, automaton=(torch.zeros(2, 11, dtype=torch.int64), start))
