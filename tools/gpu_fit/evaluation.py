"""How well constants predict measured steps, and what the planner would lose by picking with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.gpu_fit.sweep import MeasuredStep
from tools.gpu_tables import markdown


def by_call(steps: Sequence[MeasuredStep]) -> dict[tuple, list[int]]:
    """Numbers of the steps of each call."""
    calls: dict[tuple, list[int]] = {}
    for number, step in enumerate(steps):
        calls.setdefault(step.call, []).append(number)
    return calls


MOST_WEIGHT = 3.0  # of a step of a kernel that few steps are of


def weights(steps: Sequence[MeasuredStep]) -> np.ndarray:
    """Of relative errors: the share of a call's fastest tiling. What is slow need not be told apart so well.

    A kernel and direction with few steps weighs up to MOST_WEIGHT times as much a step: it competes with the others.
    """
    us = np.array([step.us for step in steps])
    values = np.zeros(len(steps))
    for numbers in by_call(steps).values():
        values[numbers] = us[numbers].min() / us[numbers]
    counts = Counter((step.kernel, step.backward) for step in steps)
    most = max(counts.values(), default=0)
    few = np.array([(most / counts[step.kernel, step.backward]) ** 0.5 for step in steps])
    return values * np.minimum(few, MOST_WEIGHT)


def residuals(steps: Sequence[MeasuredStep], **predictions: np.ndarray) -> str:
    """Predicted over measured by kernel, direction and type: median and middle 80 %, a column for each prediction."""
    us, lines = np.array([step.us for step in steps]), []
    for key in sorted({(s.kernel, s.backward, s.math) for s in steps}):
        selected = np.array([(s.kernel, s.backward, s.math) == key for s in steps])
        words = [_spread(predicted[selected] / us[selected]) for predicted in predictions.values()]
        lines.append((key[0], "backward" if key[1] else "forward", key[2], int(selected.sum()), *words))
    return markdown(("kernel", "direction", "type", "steps", *predictions), lines)


def _spread(ratio: np.ndarray) -> str:
    low, middle, high = np.quantile(ratio, (0.1, 0.5, 0.9))
    return f"{middle:.2f} ({low:.2f} … {high:.2f})"


@dataclass(frozen=True)
class Loss:
    """Time of the tilings that constants would pick among those measured, over that of the fastest."""

    mean: float  # geometric, over calls
    worst: float
    call: tuple

    def __str__(self) -> str:
        _, math, H, B, backward = self.call
        where = f"{math} H {H} B {B} {'backward' if backward else 'forward'}"
        return f"{self.mean:.3f} times the fastest measured, worst {self.worst:.2f} ({where})"


def loss(steps: Sequence[MeasuredStep], predicted: np.ndarray) -> Loss:
    """What picking by a prediction loses."""
    us, ratios = np.array([step.us for step in steps]), {}
    for call, numbers in by_call(steps).items():
        ratios[call] = us[numbers][predicted[numbers].argmin()] / us[numbers].min()
    worst = max(ratios, key=lambda call: ratios[call])
    return Loss(float(np.exp(np.log(list(ratios.values())).mean())), float(ratios[worst]), worst)
