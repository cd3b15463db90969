"""What backward computes again from what forward kept: the h that each step read, the gates, the h before projection."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.ops.arguments import SAVE_ALL, OpInputs, Saved
from fastlstm.ops.offsets import later, steps
from fastlstm.ops.reference import cell_type, input_gates, rows_of

_CHUNK = 1 << 20  # pre-activations that recompute_gates holds at once: in a CPU's cache …
_GPU_CHUNK = 1 << 24  # … or enough for products that fill a GPU


def h_previous(h: Tensor, inputs: OpInputs) -> Tensor:
    """The h that every row's step read, (N, P): the step before it, h0 where its sequence begins, zero at a reset.

    The general case; the dense one in `fastlstm.ops.weight_gradients` makes no copy.
    """
    h0, P = inputs.h0, inputs.h0.shape[1]
    if inputs.batch_sizes is None:
        before = torch.cat([h[1:], h0[None]] if inputs.reverse else [h0[None], h[:-1]])[: h.shape[0]]
        before = before.reshape(before.shape[0] * before.shape[1], P)
    else:
        before = torch.cat([h, h0])[_previous_rows(h.shape[0], inputs.offsets, inputs.reverse)]
    return before if inputs.reset is None else before.masked_fill(inputs.reset.reshape(-1, 1), 0)


def _previous_rows(N: int, offsets: Tensor, reverse: bool) -> Tensor:
    """(N,) for every packed row, the row of the step processed before it, or N + b where sequence b begins.

    Built on the device of `offsets`, without waiting for it or sending it anything.
    """
    t = steps(offsets, N)
    b = torch.arange(N, dtype=torch.int64, device=offsets.device) - offsets[t]
    if not reverse:
        return torch.where(t == 0, N + b, offsets[(t - 1).clamp(min=0)] + b)
    rows, goes_on = later(offsets, N)
    return torch.where(goes_on, rows, N + b)


def recompute_gates(inputs: OpInputs, h: Tensor, wide: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """The activated gates (T, B, 4H) or (N, 4H) again, from the saved h (SAVE_CELLS): two products a chunk, no recurrence.

    Half types are computed in float32 and rounded once, as the forward kernels do. wide: multiplies half types into
    float32 where the device can; without it they are multiplied as float32.
    """
    x, ids, w_x, bias, w_hh = inputs[:5]
    H, cell = w_hh.shape[0] // 4, cell_type(w_hh.dtype)
    before = h_previous(h, inputs)
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


def before_projection(inputs: OpInputs, saved: Saved) -> Tensor:
    """o ⊙ tanh(c) of every row, (N, H), in the cell type.

    Where the result is to be differentiated again, o is computed again from what it depends on: the saved gates are
    outputs without a gradient.
    """
    x, ids, w_x, bias, w_hh = inputs[:5]
    h, c, gates = saved
    H, cell = c.shape[-1], cell_type(w_hh.dtype)
    N = math.prod(c.shape[:-1])
    if inputs.save == SAVE_ALL and not torch.is_grad_enabled():
        o = gates[..., 3 * H :].reshape(N, H).to(cell)
    else:
        before = h_previous(h, inputs).to(cell)
        if ids is None:
            z = F.linear(x.reshape(N, x.shape[-1]).to(cell), w_x[3 * H :].to(cell))
            z = z if bias is None else z + bias[3 * H :]
        else:
            z = rows_of(w_x[:, 3 * H :].to(cell), ids)
        o = torch.sigmoid(z + before @ w_hh[3 * H :].to(cell).t())
    return o * torch.tanh(c.reshape(N, H))
