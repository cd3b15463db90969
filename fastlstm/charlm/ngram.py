"""The baseline of `fastlstm evaluate`: interpolated Kneser-Ney n-grams of characters, orders 1 to 6.

A k-gram is stored as one 64-bit key, (index of its first k - 1 characters among the (k - 1)-grams, last character),
which is sorted and counted. Method: Kneser and Ney (1995), interpolated as in Chen and Goodman (1999), one
discount D = n1 / (n1 + 2 n2) for each order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_COUNTED = 10_000_000  # characters that are counted: bounds time and memory


@dataclass
class _Order:
    """All G k-grams of one order. keys: (G,) int64, sorted."""

    keys: np.ndarray
    occurrences: _Counts
    continuations: _Counts | None = None  # continuation counts, for the orders below the highest


class _Counts:
    """Discounted probabilities of k-grams. counts: (G,); context: (G,) index of each one's context."""

    def __init__(self, counts: np.ndarray, context: np.ndarray, contexts: int):
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self.discount = once / (once + 2 * twice) if once else 0.5
        total = np.bincount(context, counts, contexts)
        kinds = np.bincount(context[counts > 0], minlength=contexts)
        safe = np.maximum(total, 1)
        self.shares = np.maximum(counts - self.discount, 0) / safe[context]
        self.backoff = np.where(total > 0, self.discount * kinds / safe, 1.0)

    def interpolate(self, gram: np.ndarray, context: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p of each character, (N,).

        Args:
            gram, context: (N,) indices of k-gram and context, -1 if not in the counts
            lower: (N,) p by the next lower order
        """
        share = np.where(gram >= 0, self.shares[gram], 0.0)
        return np.where(context >= 0, share + self.backoff[context] * lower, lower)


class NGrams:
    """N-gram models of orders 1 to `orders`, counted on a text. ids: (N,) integers below `symbols`."""

    def __init__(self, ids: np.ndarray, symbols: int, orders: int = 6):
        ids = np.asarray(ids[:MAX_COUNTED], np.int64)
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
            continuations = np.bincount(grams[1:][first], minlength=contexts)
            below.continuations = _Counts(continuations, below.keys // symbols, len(below.occurrences.backoff))
            self.orders.append(_Order(keys, _Counts(counts, keys // symbols, contexts)))
            grams = numbers

    def _first(self, ids: np.ndarray) -> _Order:
        keys, counts = np.unique(ids, return_counts=True)
        return _Order(keys, _Counts(counts, np.zeros_like(keys), 1))

    def nats(self, ids: np.ndarray, positions: np.ndarray) -> list[float]:
        """The loss of every order from 1 up, in nats, summed over some positions of a text."""
        ids = np.asarray(ids, np.int64)
        lower = np.full(len(ids), 1.0 / self.symbols)
        context = np.zeros(len(ids), np.int64)
        out = []
        for order in self.orders:
            keys = context * self.symbols + ids
            gram = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
            gram = np.where((context >= 0) & (order.keys[gram] == keys), gram, -1)
            out.append(float(-np.log(order.occurrences.interpolate(gram, context, lower)[positions]).sum()))
            if order.continuations is not None:
                lower = order.continuations.interpolate(gram, context, lower)
            context = np.concatenate([[-1], gram[:-1]])
        return out
