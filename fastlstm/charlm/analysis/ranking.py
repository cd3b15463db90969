"""How well each of many units tells a label: AUC and rank correlation, and what chance makes of the same numbers.

Both are sums of ranks with a weight a position, so that a whole layer against all labels is one matrix product; an
effect is 2 AUC - 1 or the rank correlation, from -1 to 1. Units are smooth in time and labels come in runs, so labels
shuffled character by character would make any unit look significant: the control shifts the labels around the text
(circularly), which keeps both as smooth as they are and breaks only what ties them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 128  # units ranked at a time


def midranks(values: np.ndarray) -> np.ndarray:
    """Centred ranks of each column, ties sharing theirs. values: (n, U), read as float16. Returns (n, U) float32.

    Sorting by counting: the bits of a float16, with the sign put right, are its rank among all float16s.
    """
    bits = (np.asarray(values, np.float16) + np.float16(0)).view(np.uint16)  # -0 becomes 0
    order = np.where(bits & 0x8000, ~bits, bits | 0x8000)
    ranks = np.empty(values.shape, np.float32)
    for unit in range(values.shape[1]):
        counts = np.bincount(order[:, unit], minlength=1 << 16)
        middle = np.cumsum(counts) - (counts + len(values)) / 2
        ranks[:, unit] = middle.astype(np.float32)[order[:, unit]]
    return ranks


def weights(values: np.ndarray, binary: bool) -> np.ndarray:
    """What each position adds to an effect, a unit of its rank. values: (n,). Returns (n,) float32, zero where flat."""
    if binary:
        yes = values > 0
        n_yes = int(yes.sum())
        w = np.where(yes, len(yes) - n_yes, -n_yes) / max(1, n_yes * (len(yes) - n_yes)) * (2 / max(1, len(yes)))
        return w.astype(np.float32)
    distinct, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + len(values)) / 2)[which]
    norm = np.sqrt((ranks**2).sum()) if len(distinct) > 1 else 1.0
    return (ranks / norm).astype(np.float32)


def effect(values: np.ndarray, label: np.ndarray, binary: bool) -> float:
    """2 AUC - 1 or the rank correlation of one signal with one label, (n,) each."""
    ranks = midranks(values[:, None])
    return float(_effects(weights(label, binary)[None], np.array([binary]), ranks, _norms(ranks))[0, 0])


def _norms(ranks: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(ranks, axis=0), 1e-9).astype(np.float64)


def _effects(w: np.ndarray, binary: np.ndarray, ranks: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Effects (K, U) from weights (K, n), ranks (n, U) and their norms (U,)."""
    sums = (w @ ranks).astype(np.float64)
    return np.where(binary[:, None], sums, sums / norms)


@dataclass
class Scores:
    """Effects of K labels and U units. sign: that of the fit; fit, held: (K, U) in the direction of the fit.

    control: (S, K, U) float32, the lesser of fit and held-out effect for each of S shifts of the labels.
    """

    sign: np.ndarray
    fit: np.ndarray
    held: np.ndarray
    control: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """The lesser of the two parts, (K, U): what a unit can be relied on for."""
        return np.minimum(self.fit, self.held)


def score(signals: np.ndarray, labels: np.ndarray, binary: np.ndarray, shifts: int, seed: int = 0) -> Scores:
    """Every unit against every label, on the first half of the positions and again on the second.

    signals: (n, U) float16; labels: (K, n); binary: (K,) bool; shifts: S. The seed chooses how far labels are shifted.
    """
    half, K, U = len(signals) // 2, len(labels), signals.shape[1]
    parts = [slice(0, half), slice(half, None)]
    w = [np.stack([weights(row[part], b) for row, b in zip(labels, binary, strict=True)]) for part in parts]
    rng = np.random.default_rng(seed)
    away = [rng.integers(*_range(x.shape[1]), size=shifts) for x in w]
    found = Scores(*(np.empty((K, U)) for _ in range(3)), np.empty((shifts, K, U), np.float32))
    for block in _blocks(U):
        ranks = [midranks(signals[part, block]) for part in parts]
        ranks = [(r, _norms(r)) for r in ranks]
        fit, held = (_effects(x, binary, *r) for x, r in zip(w, ranks, strict=True))
        sign = np.where(fit < 0, -1.0, 1.0)
        found.sign[:, block], found.fit[:, block], found.held[:, block] = sign, sign * fit, sign * held
        for s in range(shifts):
            fit, held = (_effects(np.roll(x, d[s], 1), binary, *r) for x, d, r in zip(w, away, ranks, strict=True))
            found.control[s, :, block] = np.minimum(np.abs(fit), np.where(fit < 0, -held, held))
    return found


def _range(n: int) -> tuple[int, int]:
    """Shifts that leave no position near where it was."""
    return n // 20, max(n // 20 + 1, n - n // 20)


def _blocks(units: int) -> Iterator[slice]:
    return (slice(a, min(a + BLOCK, units)) for a in range(0, units, BLOCK))


def threshold(both: np.ndarray, control: np.ndarray, floor: float, rate: float) -> tuple[float, float]:
    """The lowest effect, not under `floor`, above which at most a share `rate` of units passes by chance.

    both: (U,) effects; control: (S, U) of shifted labels. Returns it with the false-discovery rate there; infinity
    and 1 where there is none. The rate counts one more than the control showed, as if the next shift would pass.
    """
    passing = np.sort(both[both >= floor])
    chance = np.sort(control[control >= floor])
    for k, level in enumerate(passing):
        false = (1 + len(chance) - np.searchsorted(chance, level)) / len(control)
        if false / (len(passing) - k) <= rate:
            return float(level), float(false / (len(passing) - k))
    return float("inf"), 1.0
