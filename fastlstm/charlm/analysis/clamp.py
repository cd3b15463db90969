"""Clamping: keeps a cell at a constant value while a text is read, and measures where the loss rises.

The weights of the cell are edited so that its forget gate is 1 and its input gate 0 at every step; its state then keeps
the initial value. Its output gate still works, so other cells see the clamped one as usual.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from ..lm import CharLM
from ..model import CharModel, State
from .tracing import nats

_SATURATING = 100.0  # a gate's pre-activation at which its sigmoid is exactly 0 or 1 in float32


@dataclass(frozen=True)
class Clamp:
    """Effect of clamping a cell at `value` on the mean loss, in nats a character.

    A scalar label counts as on where it is above its median.

    Attributes:
        value: of the cell state
        label_nats: rise on characters predicted while the label is on
        other_nats: rise on all others
    """

    value: float
    label_nats: float
    other_nats: float

    @property
    def ratio(self) -> float | None:
        """label_nats / other_nats; None if the loss of the others does not rise."""
        return self.label_nats / self.other_nats if self.other_nats > 0 else None


def clamped(model: CharModel, layer: int, unit: int) -> CharModel:
    """A copy of a model in which one cell keeps its initial state. layer, unit: from 0."""
    model = copy.deepcopy(model)
    lstm, H = model.rnn.lstm, model.out.in_features
    with torch.no_grad():
        for gate, value in ((0, -_SATURATING), (1, _SATURATING)):  # rows of the input and the forget gate
            row = gate * H + unit
            for name in ("weight_ih", "weight_hh", "bias_hh"):
                getattr(lstm, f"{name}_l{layer}")[row] = 0.0
            getattr(lstm, f"bias_ih_l{layer}")[row] = value
    return model


def clamped_state(model: CharModel, layer: int, unit: int, value: float) -> State:
    """h and c of zero, (L, 1, H) each, except c of one cell, which is `value`."""
    h, c = model.zero_state(1)
    c[layer, :, unit] = value
    return h, c


class ClampTest:
    """Clamps cells on one text; the loss without a clamp is computed once. ids: (N,), the text."""

    def __init__(self, lm: CharLM, ids: np.ndarray):
        self.lm, self.ids = lm, ids
        self.plain = nats(lm, ids)

    def __call__(self, layer: int, unit: int, c: np.ndarray, label: np.ndarray, binary: bool) -> Clamp:
        """Clamp a cell at its mean where the label is off. c: (N,) its states; label: (N,)."""
        on = label > (0 if binary else np.median(label))
        value = float(c[~on].mean(dtype=np.float64)) if (~on).any() else 0.0
        module = clamped(self.lm.model, layer, unit)
        without = nats(self.lm, self.ids, module, clamped_state(module, layer, unit, value))
        rise = (without - self.plain)[1:]  # of character t + 1, predicted at t, where the label is read
        return Clamp(value, *(float(rise[mask].mean()) if mask.any() else float("nan") for mask in (on[:-1], ~on[:-1])))
