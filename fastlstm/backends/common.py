"""What every backend shares: the description of a call, the error of one that cannot run, and two helpers of backward.

`fastlstm.checks` has checked the arguments of a call and made them contiguous before a backend's forward or backward sees
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.offsets import later, steps
from fastlstm.reference import HALF_TYPES, cell_type, input_gates, rows_of

__all__ = [
    "HALF_TYPES",
    "BackendError",
    "Spec",
    "UnfitError",
    "before_projection",
    "cell_type",
    "h_previous",
    "recompute_gates",
    "spec_of",
]

_CHUNK = 1 << 20  # pre-activations that recompute_gates holds at once: in a CPU's cache …
_GPU_CHUNK = 1 << 24  # … or enough for products that fill a GPU


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run, or none can; the message says why and what to do."""


class UnfitError(BackendError):
    """A backend cannot run the call that it was given; nothing was done."""


@dataclass(frozen=True)
class Spec:
    """One call of the op, as `why_not` and `plan` see it. Sizes as in DESIGN: N rows of all steps, P width of h."""

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
    training: bool


_SPEC = tuple(Spec.__dataclass_fields__)


def spec_of(
    x: Tensor | None,
    ids: Tensor | None,
    w_x: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    save: int,
) -> Spec:
    """Describe a call from its arguments."""
    rows = x if ids is None else ids
    packed, token = batch_sizes is not None, ids is not None
    T, B = batch_sizes.shape[0] if packed else rows.shape[0], h0.shape[0]
    N = rows.shape[0] if packed else T * B
    I, V = (0, w_x.shape[0]) if token else (w_x.shape[1], 0)
    H, P = w_hh.shape[0] // 4, w_hh.shape[1]
    flags = (packed, token, w_hr is not None, reverse, reset is not None)
    values = (w_hh.device, w_hh.dtype, T, B, N, I, V, H, P, *flags, save, save > 0)
    spec = object.__new__(Spec)  # a frozen dataclass's own __init__ takes three times as long
    spec.__dict__.update(zip(_SPEC, values, strict=True))
    return spec


def h_previous(
    h: Tensor, h0: Tensor, batch_sizes: Tensor | None, offsets: Tensor | None, reset: Tensor | None, reverse: bool
) -> Tensor:
    """The h that every row's step read, (N, P): the step before it, h0 where its sequence begins, zero at a reset.

    The general case; the dense one in `fastlstm.gradients` makes no copy.
    """
    P = h0.shape[1]
    if batch_sizes is None:
        before = torch.cat([h[1:], h0[None]] if reverse else [h0[None], h[:-1]])[: h.shape[0]]
        before = before.reshape(before.shape[0] * before.shape[1], P)
    else:
        before = torch.cat([h, h0])[_previous_rows(h.shape[0], offsets, reverse)]
    return before if reset is None else before.masked_fill(reset.reshape(-1, 1), 0)


def _previous_rows(N: int, offsets: Tensor, reverse: bool) -> Tensor:
    """(N,) for every packed row, the row of the step processed before it, or N + b where sequence b begins.

    Built on the device of `offsets`, without waiting for it or sending it anything.
    """
    t = steps(offsets, N)
    b = torch.arange(N, device=offsets.device) - offsets[t]
    if not reverse:
        return torch.where(t == 0, N + b, offsets[(t - 1).clamp(min=0)] + b)
    rows, goes_on = later(offsets, N)
    return torch.where(goes_on, rows, N + b)


def recompute_gates(
    x: Tensor | None,
    ids: Tensor | None,
    w_x: Tensor,
    bias: Tensor | None,
    w_hh: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    h: Tensor,
    wide: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The activated gates (T, B, 4H) or (N, 4H) again, from the saved h (save=2): two products a chunk, no recurrence.

    Half types are computed in float32 and rounded once, as the forward kernels do. wide: multiplies half types into
    float32 where the device can; without it they are multiplied as float32.
    """
    H, cell = w_hh.shape[0] // 4, cell_type(w_hh.dtype)
    before = h_previous(h, h0, batch_sizes, offsets, reset, reverse)
    N = before.shape[0]
    rows = ids.reshape(N) if x is None else x.reshape(N, x.shape[-1])
    recurrent = w_hh.t() if wide else w_hh.to(cell).t()
    gates = h.new_empty(N, 4 * H)
    step = max(1, (_CHUNK if h.device.type == "cpu" else _GPU_CHUNK) // (4 * H))
    for at in range(0, N, step):
        part = slice(at, at + step)
        if wide and x is not None:
            z = wide(rows[part], w_x.t())
            z = z if bias is None else z.add_(bias)
        else:
            z = input_gates(None if x is None else rows[part], None if ids is None else rows[part], w_x, bias)
        z = z.add_(wide(before[part], recurrent)) if wide else torch.addmm(z, before[part].to(cell), recurrent)
        z = z.view(-1, 4, H)
        z[:, :2].sigmoid_()
        z[:, 2].tanh_()
        z[:, 3].sigmoid_()
        gates[part] = z.view(-1, 4 * H)
    return gates.view(*h.shape[:-1], 4 * H)


def before_projection(inputs: tuple, h: Tensor, c: Tensor, gates: Tensor) -> Tensor:
    """o ⊙ tanh(c) of every row, (N, H), in the cell type.

    Where the result is to be differentiated again, o is computed again from what it depends on: the saved gates are
    outputs without a gradient.
    """
    x, ids, w_x, bias, w_hh, _, h0, _, batch_sizes, offsets, reset, reverse, save = inputs
    H, cell = c.shape[-1], cell_type(w_hh.dtype)
    N = math.prod(c.shape[:-1])
    if save == 1 and not torch.is_grad_enabled():
        o = gates[..., 3 * H :].reshape(N, H).to(cell)
    else:
        before = h_previous(h, h0, batch_sizes, offsets, reset, reverse).to(cell)
        if ids is None:
            z = F.linear(x.reshape(N, x.shape[-1]).to(cell), w_x[3 * H :].to(cell))
            z = z if bias is None else z + bias[3 * H :]
        else:
            z = rows_of(w_x[:, 3 * H :].to(cell), ids)
        o = torch.sigmoid(z + before @ w_hh[3 * H :].to(cell).t())
    return o * torch.tanh(c.reshape(N, H))
