"""The baseline: interpolated Kneser-Ney n-grams of characters, orders 1 to 6, counted with sorting.

A k-gram is the pair (number of its first k - 1 characters among the (k - 1)-grams, last character): one 64-bit key,
whatever the size of the vocabulary. Method: Kneser and Ney (1995), interpolated as in Chen and Goodman (1999), one
discount D = n1 / (n1 + 2 n2) for each order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COUNTED = 10_000_000  # characters that are counted at most: bounds time and memory


@dataclass
class _Order:
    """All k-grams. keys: sorted, (G,) int64; weights by context number, (contexts,)."""

    keys: np.ndarray
    raw: _Counts
    kept: _Counts | None = None  # continuation counts, for the orders below the highest


class _Counts:
    """Counts of k-grams, ready to be discounted. counts: (G,); context: (G,) number of each one's context."""

    def __init__(self, counts: np.ndarray, context: np.ndarray, contexts: int):
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self.discount = once / (once + 2 * twice) if once else 0.5
        total = np.bincount(context, counts, contexts)
        kinds = np.bincount(context[counts > 0], minlength=contexts)
        safe = np.maximum(total, 1)
        self.shares = np.maximum(counts - self.discount, 0) / safe[context]
        self.backoff = np.where(total > 0, self.discount * kinds / safe, 1.0)

    def interpolate(self, gram: np.ndarray, context: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p of each character. gram, context: their numbers, -1 where never seen; lower: p by the order below."""
        share = np.where(gram >= 0, self.shares[gram], 0.0)
        return np.where(context >= 0, share + self.backoff[context] * lower, lower)


class NGrams:
    """Counts of a text. ids: (N,) integers below `symbols`; orders: the longest n-gram."""

    def __init__(self, ids: np.ndarray, symbols: int, orders: int = 6):
        ids = np.asarray(ids[:COUNTED], np.int64)
        self.symbols, self.orders = symbols, [self._first(ids)]
        grams, contexts = ids, 1  # number of the k-gram that ends at each position
        grams = np.searchsorted(self.orders[0].keys, ids)
        for k in range(2, orders + 1):
            if len(grams) < 2:
                break
            contexts = len(self.orders[-1].keys)
            keys, first, numbers, counts = np.unique(
                grams[:-1] * symbols + ids[k - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            below = self.orders[-1]
            # A k-gram's continuation count: how many different characters come before it.
            kept = np.bincount(grams[1:][first], minlength=contexts)
            below.kept = _Counts(kept, below.keys // symbols, len(below.raw.backoff))
            self.orders.append(_Order(keys, _Counts(counts, keys // symbols, contexts)))
            grams = numbers

    def _first(self, ids: np.ndarray) -> _Order:
        keys, counts = np.unique(ids, return_counts=True)
        return _Order(keys, _Counts(counts, np.zeros_like(keys), 1))

    def nats(self, ids: np.ndarray, positions: np.ndarray) -> list[float]:
        """-log p summed over some positions of a text, by every order from 1 up."""
        ids = np.asarray(ids, np.int64)
        lower = np.full(len(ids), 1.0 / self.symbols)
        context = np.zeros(len(ids), np.int64)
        out = []
        for order in self.orders:
            keys = context * self.symbols + ids
            gram = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
            gram = np.where((context >= 0) & (order.keys[gram] == keys), gram, -1)
            out.append(float(-np.log(order.raw.interpolate(gram, context, lower)[positions]).sum()))
            if order.kept is not None:
                lower = order.kept.interpolate(gram, context, lower)
            context = np.concatenate([[-1], gram[:-1]])
        return out
