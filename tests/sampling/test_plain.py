"""The definition: the generator against its published vectors, the noise, what top-k and top-p leave, the distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastlstm.sampling.options import FAILED, Options
from fastlstm.sampling.plain import choose, gumbel, philox, truncated
from fastlstm.sampling.weights import Sizes


def options(V: int, num: int = 1, **changes: object) -> Options:
    usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0, "stop": (), "automaton": None, "position": 0}
    return Options.of(Sizes(1, 1, 1, V), num, **{**usual, **changes})


# Counter, key, result: the known answers that come with Random123 (Salmon et al.), philox4x32 with 10 rounds.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    words = philox(tuple(torch.tensor([c]) for c in counter), key[0] | key[1] << 32)
    assert [int(w) for w in words] == expected


def test_noise_is_the_word_of_its_counter() -> None:
    """Of stream 5, draw 2³² + 7, id 6: word 2 of counter (1, 7, 5, 1), key = the seed's low and high half."""
    seed, position = 0x1234567890ABCDEF, (1 << 32) + 7
    noise = gumbel(9, seed, position, torch.tensor([3, 5]))
    assert noise.shape == (2, 9)
    word = int(philox(tuple(torch.tensor([c]) for c in (1, 7, 5, 1)), seed)[2])
    assert noise[1, 6].item() == pytest.approx(-math.log(-math.log((word + 0.5) / 2**32)), rel=1e-14)


def test_noise_has_mean_and_variance_of_gumbel_s_distribution() -> None:
    """Mean γ and variance π²/6 of 40,000 numbers, to four standard errors; no two alike."""
    noise = torch.stack([gumbel(100, 1, n, torch.arange(20)) for n in range(20)]).flatten()
    assert noise.isfinite().all()
    assert abs(noise.mean().item() - 0.577216) < 4 * math.sqrt(math.pi**2 / 6 / len(noise))
    assert abs(noise.var().item() - math.pi**2 / 6) < 4 * math.sqrt(4.4 * (math.pi**2 / 6) ** 2 / len(noise))
    assert len(noise.unique()) == len(noise)


def chi_square(counts: Tensor, probabilities: Tensor) -> tuple[float, float]:
    """The statistic over ids that have a probability, and the value that a right sampler exceeds once in 10⁶ times."""
    there = probabilities > 0
    assert counts[~there].sum() == 0, "an id of probability 0 was drawn"
    expected = probabilities[there] * counts.sum()
    degrees = int(there.sum()) - 1
    z = 4.753  # of the normal distribution; Wilson and Hilferty's cube for chi-square
    limit = degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3 if degrees else 0.0
    return ((counts[there] - expected) ** 2 / expected).sum().item(), limit


CASES = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 4},
    {"top_p": 0.7},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.8},
]


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_draws_follow_the_softmax(sampling: dict) -> None:
    """20,000 draws of one row of scores, as that many streams."""
    scores = torch.tensor([[2.0, -1.0, 0.5, 0.5, 1.0, -3.0, 0.0, -torch.inf, 1.5]], dtype=torch.float64)
    streams = torch.arange(20_000)
    drawn = choose(scores.expand(len(streams), -1), options(9, seed=3, **sampling), 11, streams)
    right = softmax(scores[0], **sampling)
    value, limit = chi_square(drawn.bincount(minlength=9), right)
    assert value <= limit
    wrong = softmax(scores[0], **{**sampling, "temperature": sampling.get("temperature", 1.0) * 1.15})
    assert chi_square(drawn.bincount(minlength=9), wrong)[0] > limit, "the test cannot tell another temperature"


def softmax(scores: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The distribution to draw from, id by id, from torch's softmax."""
    probabilities = torch.softmax(scores / temperature, 0)
    order = sorted(range(len(scores)), key=lambda v: (-float(scores[v]), v))
    order = order[: top_k or None]
    kept, total, sum_before = [], float(probabilities[order].sum()), 0.0
    for v in order:
        if sum_before < top_p * total:
            kept.append(v)
        sum_before += float(probabilities[v])
    distribution = torch.zeros_like(probabilities)
    distribution[kept] = probabilities[kept] / probabilities[kept].sum()
    return distribution


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ((0, 1.0), {0, 1, 2, 3}),
        ((1, 1.0), {0}),
        ((2, 1.0), {0, 1}),  # of equals the first
        ((9, 1.0), {0, 1, 2, 3}),
        ((0, 0.49), {0}),
        ((0, 0.51), {0, 1}),
        ((0, 0.95), {0, 1, 2, 3}),
        ((3, 0.9), {0, 1, 2}),  # 0.56, 0.78 and 1 of what top-k left
        ((0, 1e-9), {0}),
    ],
)
def test_top_k_and_top_p_keep_the_most_likely(limits: tuple[int, float], kept: set[int]) -> None:
    keys = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64).log()
    remaining = truncated(keys, *limits)
    assert set(remaining[0].isfinite().nonzero()[:, 0].tolist()) == kept
    assert torch.equal(remaining[remaining.isfinite()], keys[remaining.isfinite()])


def test_rows_with_nothing_to_draw_give_failed() -> None:
    inf, nan = torch.inf, torch.nan
    rows = torch.tensor([[0.0, nan], [inf, 0.0], [-inf, -inf], [-inf, 0.0]])
    for temperature in (0.0, 1.0):
        drawn = choose(rows, options(2, temperature=temperature), 0, torch.arange(4))
        assert drawn.tolist() == [FAILED, FAILED, FAILED, 1]


def test_temperature_zero_takes_the_first_of_equals() -> None:
    assert choose(torch.tensor([[1.0, 3.0, 3.0]]), options(3, temperature=0), 0, torch.tensor([0])).tolist() == [1]


def test_tiny_temperatures_draw_the_largest_and_huge_ones_any() -> None:
    scores, streams = torch.tensor([[1.0, 3.0, 2.0]]).expand(200, -1), torch.arange(200)
    assert set(choose(scores, options(3, temperature=1e-300), 0, streams).tolist()) == {1}
    assert set(choose(scores, options(3, temperature=1e300), 0, streams).tolist()) == {0, 1, 2}
