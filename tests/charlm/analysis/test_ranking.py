"""Effects are AUC and rank correlation; chance finds do not pass the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlstm.charlm.analysis.ranking import effect, interval, midranks, score, threshold, weighted_effect

values = st.lists(st.integers(-4, 4), min_size=4, max_size=60)


def plain_ranks(x):
    return np.array([(x < v).sum() + (x == v).sum() / 2 - len(x) / 2 for v in x])


@settings(max_examples=50, deadline=None)
@given(values, st.data())
def test_effects_are_auc_and_rank_correlation(signal, data):
    x = np.array(signal, float)
    y = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))))
    np.testing.assert_array_equal(midranks(x[:, None])[:, 0], plain_ranks(x))
    yes = y > 1
    if yes.any() and not yes.all():
        auc = ((x[yes][:, None] > x[~yes]) + 0.5 * (x[yes][:, None] == x[~yes])).mean()
        assert effect(x, yes, True) == pytest.approx(2 * auc - 1, abs=1e-5)
    if len(set(x)) > 1 and len(set(y)) > 1:
        rho = np.corrcoef(plain_ranks(x), plain_ranks(y))[0, 1]
        assert effect(x, y, False) == pytest.approx(rho, abs=1e-5)


def test_smooth_noise_does_not_reach_the_threshold():
    """Slow noise and a label in long runs correlate, as the shifted labels show; a naive permutation would not."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8000, 200))
    for t in range(1, len(noise)):
        noise[t] += 0.99 * noise[t - 1]
    label = np.repeat(rng.integers(0, 2, 80), 100)
    scores = score(noise.astype(np.float16), label[None], np.array([True]), 40)
    assert (scores.both >= 0.2).sum() > 3
    assert threshold(scores.both[0], scores.control[:, 0], 0.2, 0.05)[0] == np.inf
    naive = np.stack([np.abs([effect(noise[:, u], rng.permutation(label), True) for u in range(20)])])
    assert naive.max() < 0.1


def test_the_threshold_rises_with_chance():
    both, control = np.array([0.95, 0.9, 0.85, 0.2]), np.zeros((40, 4))
    assert threshold(both, control, 0.8, 0.05) == (0.85, pytest.approx(1 / 40 / 3))
    control[:8, 0] = 0.87
    assert threshold(both, control, 0.8, 0.05) == (0.9, pytest.approx(1 / 40 / 2))
    control[:, 0] = 0.99
    assert threshold(both, control, 0.8, 0.05) == (np.inf, 1.0)


@settings(max_examples=50, deadline=None)
@given(values, st.data(), st.booleans())
def test_a_weighted_effect_is_that_of_repeated_positions(signal, data, binary):
    x = np.array(signal)
    y = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))))
    y = (y > 1).astype(int) if binary else y
    w = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))))
    got = weighted_effect(x - x.min(), y, w.astype(float), binary)
    xs, ys = np.repeat(x, w), np.repeat(y, w)
    if len(set(ys)) > 1 and (binary or len(set(xs)) > 1):
        assert got == pytest.approx(effect(xs.astype(float), ys, binary), abs=1e-5)
    else:
        assert np.isnan(got)


@pytest.mark.parametrize("binary", [True, False])
def test_an_interval_holds_the_effect_of_the_whole_text_about_as_often_as_it_says(binary):
    """Slow noise: of 30 texts the 95 % interval holds the true effect in at least 25, and it is no wider than need be."""
    rng, held, widths = np.random.default_rng(1), 0, []
    for _ in range(30):
        label = np.repeat(rng.integers(0, 2 if binary else 5, 200), 20).astype(float)
        noise = np.repeat(rng.normal(size=200), 20)
        values = label + 1.2 * noise
        low, high = interval(values, label, binary)
        assert low <= effect(values, label, binary) <= high
        truth = TRUE_EFFECT[binary]
        held += low <= truth <= high
        widths.append(high - low)
    assert held >= 25
    assert np.mean(widths) < 0.35


def _true_effect(binary):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2 if binary else 5, 1_000_000).astype(float)
    return effect(label + 1.2 * rng.normal(size=len(label)), label, binary)


TRUE_EFFECT = {binary: _true_effect(binary) for binary in (True, False)}


def test_a_constant_label_has_no_interval():
    assert np.isnan(interval(np.arange(200.0), np.zeros(200), True)).all()
