"""Gradients of weights and input from those of the recurrence: one product each, in plain torch operations.

`lstm_backward` gives d_gates, the gradient at the pre-activations of all steps, and dh_proj, that at the projected h; what
follows is linear in them. Torch can differentiate, batch and compile what is here, so double backward and torch.func
need no further rule. Only what is asked for is computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends.device import products_of
from fastlstm.ops.arguments import OpInputs, Saved
from fastlstm.ops.autocast import own_types
from fastlstm.ops.gemm import matmul
from fastlstm.ops.recompute import before_projection, h_previous


def of_weights(
    needs_grad: tuple[bool, ...],
    d_gates: Tensor,
    dh_proj: Tensor,
    inputs: OpInputs,
    saved: Saved,
    dbias: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return dx, None (ids), dw_x, dbias, dw_hh, dw_hr, where wanted; `inputs` are those of `lstm_forward`.

    On a GPU float32 is multiplied as cuDNN's LSTM would: as TF32 where its switch allows that. Autocast has no say: a
    gradient has the type of what it is of, also where backward runs inside autocast and forward did not.

    dbias: the sum of d_gates over all rows, where a kernel has made it already.
    """
    with products_of(d_gates), own_types(d_gates):
        return _of_weights(needs_grad, d_gates, dh_proj, inputs, saved, dbias)


def _of_weights(
    needs_grad: tuple[bool, ...],
    d_gates: Tensor,
    dh_proj: Tensor,
    inputs: OpInputs,
    saved: Saved,
    dbias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    x, ids, w_x, w_hh = inputs.x, inputs.ids, inputs.w_x, inputs.w_hh
    rows = d_gates.reshape(math.prod(d_gates.shape[:-1]), d_gates.shape[-1])  # Size.numel() would fix a dynamic shape
    dx = dw_x = dw_hh = dw_hr = None
    if needs_grad[0]:
        dx = matmul(rows, w_x).view(x.shape)
    if needs_grad[2] and ids is None:
        dw_x = matmul(rows.t(), x.reshape(rows.shape[0], x.shape[-1]))
    elif needs_grad[2]:
        dw_x = torch.ops.fastlstm.sum_by_id(rows, ids.reshape(rows.shape[0]), w_x.shape[0])
    if not needs_grad[3]:
        dbias = None
    elif dbias is None:
        dbias = rows.sum(0)
    if needs_grad[4]:
        dw_hh = _recurrent(d_gates, inputs, saved.h)
    if needs_grad[5]:
        h_unprojected = before_projection(inputs, saved)
        dw_hr = (
            dh_proj.reshape(h_unprojected.shape[0], dh_proj.shape[-1]).to(h_unprojected.dtype).t() @ h_unprojected
        ).to(w_hh.dtype)
    return dx, None, dw_x, dbias, dw_hh, dw_hr


def _recurrent(d_gates: Tensor, inputs: OpInputs, h: Tensor) -> Tensor:
    """dW_hh = d_gatesᵀ @ h_prev, (4H, P). Dense: shifted views, no copy, and the step that read h0 on its own."""
    rows_of_gates, P = d_gates.shape[-1], h.shape[-1]
    if inputs.batch_sizes is not None or inputs.reset is not None or h.shape[0] == 0:
        before = h_previous(h, inputs)
        return matmul(d_gates.reshape(before.shape[0], rows_of_gates).t(), before)
    later, earlier, first = (d_gates[:-1], h[1:], d_gates[-1]) if inputs.reverse else (d_gates[1:], h[:-1], d_gates[0])
    rows = later.shape[0] * later.shape[1]
    product = matmul(later.reshape(rows, rows_of_gates).t(), earlier.reshape(rows, P))
    return matmul(first.t(), inputs.h0, add_to=product)


dynamo_skip(__name__)
