"""The n-gram baseline against distributions, counting by hand, and longer n-grams."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fastlstm.charlm.evaluate import targets
from fastlstm.charlm.ngram import NGrams


def test_ngrams_are_distributions():
    ids = np.random.default_rng(0).integers(0, 5, 300)
    model = NGrams(ids, 5)
    for context in ([0, 1, 2, 3, 4], [4, 4, 4, 4, 4], list(ids[10:15])):
        p = np.zeros(6)
        for last in range(5):
            p += np.exp(-np.array(model.nats(np.array([*context, last]), np.array([5]))))
        assert p == pytest.approx(np.ones(6))


def test_bigrams_against_counting_by_hand():
    """Interpolated Kneser-Ney of order 2, written with dictionaries."""
    text = [int(c) for c in "0102010301020104"]
    pairs = list(itertools.pairwise(text))
    V = 5

    def discounted(counts, discount, lower):
        total = sum(counts.values())
        return lambda w: max(counts.get(w, 0) - discount, 0) / total + discount * len(counts) / total * lower(w)

    def discount(numbers):
        one, two = numbers.count(1), numbers.count(2)
        return one / (one + 2 * two) if one else 0.5

    kept = {w: len({a for a, b in set(pairs) if b == w}) for w in {b for _, b in pairs}}
    unigram = discounted(kept, discount([kept.get(w, 0) for w in set(text)]), lambda w: 1 / V)
    count = {pair: pairs.count(pair) for pair in set(pairs)}
    D = discount(list(count.values()))
    model = NGrams(np.array(text), V, 2)
    for a, w in itertools.product(range(4), range(5)):
        after = {b: n for (first, b), n in count.items() if first == a}
        expected = discounted(after, D, unigram)(w) if after else unigram(w)
        probability = math.exp(-model.nats(np.array([a, w]), np.array([1]))[1])
        assert probability == pytest.approx(expected), (a, w)


def test_longer_ngrams_do_better_on_text(lm):
    held = lm.eval_text(lm.corpus(), "val")
    nats = lm.baseline(held)
    assert len(nats) == 6
    assert nats[0] > nats[1] > nats[2]
    assert len(targets(held)) == len(held)
