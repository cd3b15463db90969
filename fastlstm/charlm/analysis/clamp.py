"""Does the model use a cell? Hold the cell at one value while a text is read, and see where the loss rises.

No kernel knows of this: the cell's own weights are edited so that its forget gate is 1 and its input gate 0 at every
step; what the state begins with is then what it stays. Other cells see the held one as ever, through its output gate.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from ..lm import CharLM
from ..model import CharModel, State
from .tracing import nats

_SHUT = 100.0  # a gate's input at which float32 has it at exactly 0 or 1


@dataclass(frozen=True)
class Clamp:
    """A cell held at `value`: the rise of the mean loss, in nats, on characters predicted under the label and others.

    A scalar label counts as on where it is above its median.
    """

    value: float
    label_nats: float
    other_nats: float

    @property
    def ratio(self) -> float | None:
        """How many times more the label's characters suffer; None where the others do not suffer at all."""
        return self.label_nats / self.other_nats if self.other_nats > 0 else None


def clamped(model: CharModel, layer: int, unit: int) -> CharModel:
    """A copy of a model in which one cell keeps what its state begins with. layer, unit: from 0."""
    model = copy.deepcopy(model)
    lstm, H = model.rnn.lstm, model.out.in_features
    with torch.no_grad():
        for gate, value in ((0, -_SHUT), (1, _SHUT)):  # rows of the input and the forget gate
            row = gate * H + unit
            for name in ("weight_ih", "weight_hh", "bias_hh"):
                getattr(lstm, f"{name}_l{layer}")[row] = 0.0
            getattr(lstm, f"bias_ih_l{layer}")[row] = value
    return model


def held_at(model: CharModel, layer: int, unit: int, value: float) -> State:
    """A state of zero, (L, 1, H) each, with one cell's c at a value."""
    h, c = model.zero_state(1)
    c[layer, :, unit] = value
    return h, c


class Clamps:
    """Clamp after clamp on one text, whose loss as it is is measured once. ids: (N,)."""

    def __init__(self, lm: CharLM, ids: np.ndarray):
        self.lm, self.ids = lm, ids
        self.plain = nats(lm, ids)

    def __call__(self, layer: int, unit: int, c: np.ndarray, label: np.ndarray, binary: bool) -> Clamp:
        """Hold a cell at its mean where the label is off. c: (N,) its trace; label: (N,) on the same text."""
        on = label > (0 if binary else np.median(label))
        value = float(c[~on].mean(dtype=np.float64)) if (~on).any() else 0.0
        module = clamped(self.lm.model, layer, unit)
        without = nats(self.lm, self.ids, module, held_at(module, layer, unit, value))
        rise = (without - self.plain)[1:]  # of character t + 1, predicted at t: that is where the label is looked up
        return Clamp(value, *(float(rise[mask].mean()) if mask.any() else float("nan") for mask in (on[:-1], ~on[:-1])))
