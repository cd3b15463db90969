"""The native loop against the definition: every instruction set, threads 1 to 3, options crossed with sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import fastlstm
from fastlstm.backends import native
from fastlstm.sampling.plain import gumbel
from tests import isas
from tests.sampling.models import Model, make_model
from tests.sampling.test_plain import CASES, chi_square, softmax

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
# V, E, H, L, P, bias
SIZES = [
    (2, None, 1, 1, 0, True),
    (21, 5, 17, 2, 0, True),
    (65, None, 65, 1, 0, False),
    (130, 3, 33, 3, 19, True),
    (17, 16, 129, 2, 0, True),
]
OPTIONS = [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.5}]


@contextmanager
def running(isa: str | None = None, threads: int = 1) -> Iterator[None]:
    """Inside: one instruction set, so many threads."""
    was, before = native.load().isa(), torch.get_num_threads()
    native.load().set_isa(isa or was)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        native.load().set_isa(was)
        torch.set_num_threads(before)


def assert_same(decoded: fastlstm.Decoded, expected: fastlstm.Decoded) -> None:
    """Equal ids; state and log-probabilities as close as two orders of a float32 sum."""
    assert torch.equal(decoded.ids, expected.ids)
    torch.testing.assert_close(decoded.state, expected.state, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(decoded.log_probs, expected.log_probs, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("isa", isas.FLOAT)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_native_loop_draws_as_the_definition(size: tuple, isa: str) -> None:
    """Options and numbers of streams in rotation; with a stop; the prime longer than one id; weights also bfloat16."""
    model = make_model(*size)
    V = model.rnn.num_embeddings
    for k, num in enumerate((1, 2, 3, 5, 7, 13)):
        sampling = {"num": num, "seed": k, "stop": [[0, 1], 3 % V], **OPTIONS[(k + size[2]) % len(OPTIONS)]}
        dtype = torch.bfloat16 if k % 3 == 1 else None
        with fastlstm.backend("reference"):
            expected = fastlstm.decode(*model.args, [1, 0, 1], 12, log_probs=True, dtype=dtype, **sampling)
            assert fastlstm.last_plan().startswith("reference: decode")
        with fastlstm.backend("cpu"), running(isa):
            decoded = fastlstm.decode(*model.args, [1, 0, 1], 12, log_probs=True, dtype=dtype, **sampling)
            assert fastlstm.last_plan() == f"cpu: decode, {num} streams, {isa}"
        assert_same(decoded, expected)


@pytest.mark.parametrize("isa", isas.FLOAT)
@pytest.mark.parametrize(
    ("num", "size"), [(1, SIZES[4]), (5, SIZES[3]), (40, SIZES[1]), (40, (300, 8, 160, 3, 0, True))]
)
def test_threads_change_nothing(num: int, size: tuple, isa: str) -> None:
    """Not a bit, with streams that end on the way; 40 streams are split, of the large model its units are."""
    model = make_model(*size)
    stops = [[v] for v in range(0, model.rnn.num_embeddings, 40)]
    by_threads = []
    for threads in (1, 2, 3):
        with running(isa, threads):
            by_threads.append(fastlstm.decode(*model.args, [1], 14, num=num, stop=stops, top_p=0.95, log_probs=True))
    for other in by_threads[1:]:
        assert torch.equal(other.ids, by_threads[0].ids)
        assert torch.equal(other.log_probs, by_threads[0].log_probs)
        assert torch.equal(other.state[0], by_threads[0].state[0])
        assert torch.equal(other.state[1], by_threads[0].state[1])


@pytest.mark.parametrize("isa", isas.FLOAT)
def test_native_noise_is_that_of_the_definition(isa: str) -> None:
    """All the noise of a row, to the last few bits of float64, and its extremes: Gumbel numbers of the native module."""
    with running(isa):
        for V, seed, position, stream in ((8, 0, 0, 0), (72, 2**64 - 1, 2**40 + 5, 9), (4096, 7, 3, 2**31)):
            noise = torch.empty(V, dtype=torch.float64)
            native.load().gumbel(noise=noise, n=V, seed=seed, position=position, stream=stream)
            torch.testing.assert_close(
                noise, gumbel(V, seed, position, torch.tensor([stream]))[0], rtol=4e-15, atol=1e-15
            )


@pytest.mark.parametrize("isa", isas.FLOAT)
@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_draws_follow_the_softmax(sampling: dict, isa: str) -> None:
    """20,000 draws from one distribution: scores that do not depend on what was drawn, weights of zero but for the bias."""
    model = make_model(9, None, 4, 1)
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.copy_(torch.tensor([2.0, -1.0, 0.5, 0.5, 1.0, -3.0, 0.0, -torch.inf, 1.5]))
    with fastlstm.backend("cpu"), running(isa):
        drawn = fastlstm.decode(*model.args, [0], 100, num=200, seed=11, **sampling).ids
    value, limit = chi_square(
        drawn.flatten().bincount(minlength=9), softmax(model.out.bias.detach().double(), **sampling)
    )
    assert value <= limit


@pytest.mark.parametrize("isa", isas.FLOAT)
def test_scores_that_are_not_finite_are_refused(isa: str) -> None:
    for bad, temperature in ((torch.nan, 1.0), (torch.inf, 1.0), (torch.nan, 0.0)):
        model: Model = make_model(5, None, 4, 1)
        model.out.bias.data[3] = bad
        with (
            running(isa),
            pytest.raises(ValueError, match=r"stream 0 has nothing to draw at step 0: its scores are NaN"),
        ):
            fastlstm.decode(*model.args, [0], 5, num=2, temperature=temperature)


def test_a_decoder_copies_the_weights() -> None:
    model = make_model(9, 4, 8, 2)
    decoder = fastlstm.Decoder(*model.args)
    first = decoder.start([1]).draw(20).ids
    for p in [*model.rnn.parameters(), *model.out.parameters()]:
        p.data.zero_()
    assert torch.equal(decoder.start([1]).draw(20).ids, first)
