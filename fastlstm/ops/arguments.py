"""The arguments of the op as they travel from `ops/lstm.py` to a backend's kernels, by name, and their description.

    OpInputs    what `lstm_forward` takes          Grads   the incoming gradients of `lstm_backward`
    Saved       what forward kept for backward     Spec    sizes, type and features of a call, without its tensors

Shapes of all of them: `fastlstm.ops.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SAVE_NOTHING, SAVE_ALL, SAVE_CELLS = 0, 1, 2  # values of `save`: for inference; c and gates; c alone


@dataclass(frozen=True)
class Spec:
    """One call of the op, as a backend is asked about it.

    T: steps; B: sequences; N: rows of all steps (T·B when dense); I: input features, 0 with ids; V: rows of the table, 0
    without ids; H: units; P: features of h; projected: P comes from a projection; save: one of SAVE_….
    """

    device: torch.device
    dtype: torch.dtype
    T: int
    B: int
    N: int
    I: int
    V: int
    H: int
    P: int
    packed: bool
    token: bool
    projected: bool
    reverse: bool
    reset: bool
    save: int

    @property
    def training(self) -> bool:
        """Whether something is kept for backward."""
        return self.save != SAVE_NOTHING


_FIELDS = tuple(Spec.__dataclass_fields__)


def make_spec(*values: object) -> Spec:
    """A Spec from its fields in order; a frozen dataclass's own __init__ takes three times as long."""
    spec = object.__new__(Spec)
    spec.__dict__.update(zip(_FIELDS, values, strict=True))
    return spec


class OpInputs(NamedTuple):
    """The arguments of `lstm_forward`, in its order. Either x or ids is given; w_x is the table with ids."""

    x: Tensor | None
    ids: Tensor | None
    w_x: Tensor
    bias: Tensor | None
    w_hh: Tensor
    w_hr: Tensor | None
    h0: Tensor
    c0: Tensor
    batch_sizes: Tensor | None
    offsets: Tensor | None
    reset: Tensor | None
    reverse: bool
    save: int

    @property
    def rows(self) -> Tensor:
        """What every row is made from: x, or ids."""
        return self.x if self.ids is None else self.ids

    @property
    def lead(self) -> torch.Size:
        """The dimensions that count rows: (T, B), packed (N,)."""
        return self.rows.shape[: 2 if self.batch_sizes is None else 1]

    @property
    def T(self) -> int:
        return self.rows.shape[0] if self.batch_sizes is None else self.batch_sizes.shape[0]

    @property
    def H(self) -> int:
        return self.w_hh.shape[0] // 4

    def spec(self) -> Spec:
        """The description of this call."""
        packed, token = self.batch_sizes is not None, self.ids is not None
        w_x, w_hh, T, B = self.w_x, self.w_hh, self.T, self.h0.shape[0]
        N = self.rows.shape[0] if packed else T * B
        I, V = (0, w_x.shape[0]) if token else (w_x.shape[1], 0)
        flags = (packed, token, self.w_hr is not None, self.reverse, self.reset is not None)
        return make_spec(w_hh.device, w_hh.dtype, T, B, N, I, V, self.H, w_hh.shape[1], *flags, self.save)


class Grads(NamedTuple):
    """Incoming gradients at h, c, h_n and c_n; None means zero."""

    dh: Tensor | None
    dc: Tensor | None
    dh_n: Tensor | None
    dc_n: Tensor | None


class Saved(NamedTuple):
    """What forward returned and backward reads: h, c and, with SAVE_ALL, the activated gates."""

    h: Tensor
    c: Tensor
    gates: Tensor
