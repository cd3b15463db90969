"""Least squares for the constants: non-negative, of relative errors, with numpy alone.

A prediction has a maximum in it: of the parts that overlap, only the largest counts. With the constants at hand it is
known which that is, the rest is linear, and the solution gives new constants; this is repeated until nothing changes.
"""

from __future__ import annotations

import numpy as np

from tools.gpu_fit.sweep import OVERLAPPING, predict

PRIOR = 1e-7  # what a constant that is off by its own size costs, as a share of all steps: holds what they do not tell
OUTLIER = 0.3  # relative error from which a step's weight goes down
ROUNDS = 60


def nnls(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least |a x - b| (Lawson and Hanson's active set)."""
    orthogonal, a = np.linalg.qr(a)  # as few rows as columns from here on
    b, n = orthogonal.T @ b, a.shape[1]
    x, free = np.zeros(n), np.zeros(n, bool)
    limit = 1e-10 * np.abs(a.T @ b).max()
    for _ in range(10 * n):
        gradient = a.T @ (b - a @ x)
        if free.all() or gradient[~free].max() <= limit:
            break
        free[np.argmax(np.where(free, -np.inf, gradient))] = True
        while True:
            solution = np.zeros(n)
            solution[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            if (solution[free] > 0).all():
                x = solution
                break
            falling = free & (solution <= 0)
            x = x + np.min(x[falling] / (x[falling] - solution[falling])) * (solution - x)
            free &= x > 1e-12 * x.max()
            x[~free] = 0
    return x


def fit(
    table: np.ndarray,
    hbm: np.ndarray,
    us: np.ndarray,
    weights: np.ndarray,
    start: np.ndarray,
    least: np.ndarray | float = 0.0,
) -> np.ndarray:
    """The constants for measured steps.

    Args:
        table, hbm: see sweep.counts.
        us: what was measured.
        weights: of the relative error of each step.
        start: the constants so far; one that no step tells anything about keeps its value.
        least: the smallest value of each that makes sense.
    """
    low = np.broadcast_to(least, start.shape)
    values, best, lowest = np.maximum(start, low), np.maximum(start, low), np.inf
    for _ in range(ROUNDS):
        new = _linear(table, hbm, us, weights, values, start, low)
        loss = _loss(table, hbm, us, weights, new)
        if loss < lowest:
            best, lowest = new, loss
        if np.allclose(new, values, rtol=1e-6):
            break
        values = (values + new) / 2  # halfway: the largest part may go to and fro
    return best


def _linear(table, hbm, us, weights, values, start, low) -> np.ndarray:
    """The constants when the parts that are largest with `values` stay the largest."""
    parts = table * values
    largest = parts[:, :OVERLAPPING].argmax(1)
    active = table.copy()
    active[:, :OVERLAPPING] *= np.eye(OVERLAPPING)[largest]
    predicted = predict(table, hbm, values)
    off = np.abs(predicted / us - 1)
    weight = weights * np.minimum(1, np.sqrt(OUTLIER / np.maximum(off, 1e-9))) * (predicted > hbm)
    scale = np.where(start > 0, start, 1.0)
    held = np.sqrt(PRIOR * len(us)) * np.diag(1 / scale)
    a = np.concatenate([active * (weight / us)[:, None], held])
    return low + nnls(a * scale, np.concatenate([weight, held @ start]) - a @ low) * scale


def _loss(table, hbm, us, weights, values) -> float:
    off = np.abs(predict(table, hbm, values) / us - 1)
    return float((weights**2 * np.where(off < OUTLIER, off**2, OUTLIER * off)).sum())
