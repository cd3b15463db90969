"""Effect sizes of units on labels, AUC or rank correlation, and the distribution of the same by chance.

An effect is 2 AUC - 1 or the rank correlation, from -1 to 1. Both are weighted sums of ranks, so the effects of a whole
layer on all labels are one matrix product.

The control shifts the labels circularly around the text. Units are smooth in time and labels come in runs; shuffling
labels character by character would destroy that and make any unit look significant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 128  # units ranked at a time
BLOCKS, REPLICATES = 50, 200  # of the bootstrap: pieces of the text, and draws of as many of them


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
    """Weight of each position's rank in the effect. values: (n,), the label. Returns (n,) float32; zero for a constant."""
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
    """Effect of one signal on one label, (n,) each: 2 AUC - 1 if `binary`, else the rank correlation."""
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
    """Effects of U units on K labels.

    Attributes:
        sign: (K, U), of the effect on the first half
        fit: (K, U), effect on the first half times sign
        held_out: (K, U), effect on the second half times sign
        control: (S, K, U) float32, the lesser of both for each of S shifts of the labels
    """

    sign: np.ndarray
    fit: np.ndarray
    held_out: np.ndarray
    control: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """The lesser effect of the two halves, (K, U)."""
        return np.minimum(self.fit, self.held_out)


def score(signals: np.ndarray, labels: np.ndarray, binary: np.ndarray, shifts: int, seed: int = 0) -> Scores:
    """Effects of every unit on every label, on the first and on the second half of the positions.

    Args:
        signals: (n, U) float16
        labels: (K, n)
        binary: (K,) bool
        shifts: S, of the control
        seed: of the random shifts
    """
    half, K, U = len(signals) // 2, len(labels), signals.shape[1]
    parts = [slice(0, half), slice(half, None)]
    w = [np.stack([weights(row[part], b) for row, b in zip(labels, binary, strict=True)]) for part in parts]
    rng = np.random.default_rng(seed)
    offsets = [rng.integers(*_shift_range(x.shape[1]), size=shifts) for x in w]
    scores = Scores(*(np.empty((K, U)) for _ in range(3)), np.empty((shifts, K, U), np.float32))
    for block in _blocks(U):
        ranks = [midranks(signals[part, block]) for part in parts]
        ranks = [(r, _norms(r)) for r in ranks]
        fit, held_out = (_effects(x, binary, *r) for x, r in zip(w, ranks, strict=True))
        sign = np.where(fit < 0, -1.0, 1.0)
        scores.sign[:, block], scores.fit[:, block], scores.held_out[:, block] = sign, sign * fit, sign * held_out
        for s in range(shifts):
            fit, held_out = (
                _effects(np.roll(x, d[s], 1), binary, *r) for x, d, r in zip(w, offsets, ranks, strict=True)
            )
            scores.control[s, :, block] = np.minimum(np.abs(fit), np.where(fit < 0, -held_out, held_out))
    return scores


def _shift_range(n: int) -> tuple[int, int]:
    """Least and greatest circular shift: no position comes near its old place."""
    return n // 20, max(n // 20 + 1, n - n // 20)


def _blocks(units: int) -> Iterator[slice]:
    return (slice(a, min(a + BLOCK, units)) for a in range(0, units, BLOCK))


def weighted_effect(signal: np.ndarray, classes: np.ndarray, w: np.ndarray, binary: bool) -> float:
    """The effect of a signal on a label where position t counts w[t] times; NaN if either is constant.

    Args:
        signal, classes: (n,) integers in the order of the values
        w: (n,) float64, 0 or more
        binary: 2 AUC - 1 instead of the rank correlation; `classes` are then 0 and 1
    """
    if binary:
        yes, no = (np.bincount(signal, w * (classes == k)) for k in (1, 0))
        pairs = yes.sum() * no.sum()
        return 2 * float(yes @ (np.cumsum(no) - no / 2)) / pairs - 1 if pairs else float("nan")
    x, y = (_weighted_ranks(values, w) for values in (signal, classes))
    norm = np.sqrt((w @ x**2) * (w @ y**2))
    return float((w * x) @ y / norm) if norm else float("nan")


def _weighted_ranks(values: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Centred ranks of integers, ties sharing theirs, position t counted w[t] times."""
    counts = np.bincount(values, w)
    return (np.cumsum(counts) - (counts + w.sum()) / 2)[values]


def interval(values: np.ndarray, label: np.ndarray, binary: bool, seed: int = 0) -> tuple[float, float]:
    """A 95 % interval of an effect by block bootstrap: blocks of consecutive positions are drawn with replacement.

    Signals and labels are smooth in time, so single positions would give an interval far too narrow.

    Args:
        values, label: a signal and a label, (n,) each
        binary: as for `effect`
        seed: of the draws

    Returns:
        The 2.5 % and the 97.5 % quantile over REPLICATES draws; NaN if no draw has an effect.
    """
    _, signal = np.unique(np.asarray(values, np.float16) + np.float16(0), return_inverse=True)
    _, classes = np.unique(label > 0 if binary else label, return_inverse=True)
    block = np.arange(len(label)) * min(BLOCKS, len(label)) // len(label)
    rng = np.random.default_rng(seed)
    blocks = int(block[-1]) + 1
    draws = rng.multinomial(blocks, np.full(blocks, 1 / blocks), REPLICATES)  # how often each block is drawn
    effects = np.array([weighted_effect(signal, classes, draw[block].astype(np.float64), binary) for draw in draws])
    effects = effects[np.isfinite(effects)]
    return tuple(map(float, np.quantile(effects, (0.025, 0.975)))) if len(effects) else (float("nan"),) * 2


def threshold(both: np.ndarray, control: np.ndarray, floor: float, rate: float) -> tuple[float, float]:
    """The lowest threshold of effects at which the false-discovery rate is at most `rate`.

    The rate counts one chance find more than the control showed.

    Args:
        both: (U,) effects of the units
        control: (S, U) effects on shifted labels
        floor: least threshold
        rate: greatest false-discovery rate

    Returns:
        The threshold and the false-discovery rate at it; infinity and 1 if there is none.
    """
    passing = np.sort(both[both >= floor])
    chance = np.sort(control[control >= floor])
    for k, level in enumerate(passing):
        false = (1 + len(chance) - np.searchsorted(chance, level)) / len(control)
        if false / (len(passing) - k) <= rate:
            return float(level), float(false / (len(passing) - k))
    return float("inf"), 1.0
