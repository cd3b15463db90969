"""Gradients of weights and input from those of the recurrence: one product each, in plain torch operations.

`lstm_backward` gives dxg, the gradient at the pre-activations of all steps, and d_hr, that at the projected h; what
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
    wanted: tuple[bool, ...], dxg: Tensor, d_hr: Tensor, inputs: OpInputs, saved: Saved
) -> tuple[Tensor | None, ...]:
    """Return dx, None (ids), dw_x, dbias, dw_hh, dw_hr, where wanted; `inputs` are those of `lstm_forward`.

    On a GPU float32 is multiplied as cuDNN's LSTM would: as TF32 where its switch allows that. Autocast has no say: a
    gradient has the type of what it is of, also where backward runs inside autocast and forward did not.
    """
    with products_of(dxg), own_types(dxg):
        return _of_weights(wanted, dxg, d_hr, inputs, saved)


def _of_weights(
    wanted: tuple[bool, ...], dxg: Tensor, d_hr: Tensor, inputs: OpInputs, saved: Saved
) -> tuple[Tensor | None, ...]:
    x, ids, w_x, w_hh = inputs.x, inputs.ids, inputs.w_x, inputs.w_hh
    rows = dxg.reshape(math.prod(dxg.shape[:-1]), dxg.shape[-1])  # Size.numel() would fix a dynamic shape
    dx = dw_x = dbias = dw_hh = dw_hr = None
    if wanted[0]:
        dx = matmul(rows, w_x).view(x.shape)
    if wanted[2] and ids is None:
        dw_x = matmul(rows.t(), x.reshape(rows.shape[0], x.shape[-1]))
    elif wanted[2]:
        dw_x = torch.ops.fastlstm.sum_by_id(rows, ids.reshape(rows.shape[0]), w_x.shape[0])
    if wanted[3]:
        dbias = rows.sum(0)
    if wanted[4]:
        dw_hh = _recurrent(dxg, inputs, saved.h)
    if wanted[5]:
        y = before_projection(inputs, saved)
        dw_hr = (d_hr.reshape(y.shape[0], d_hr.shape[-1]).to(y.dtype).t() @ y).to(w_hh.dtype)
    return dx, None, dw_x, dbias, dw_hh, dw_hr


def _recurrent(dxg: Tensor, inputs: OpInputs, h: Tensor) -> Tensor:
    """dW_hh = dxgᵀ @ h_prev, (4H, P). Dense: shifted views, no copy, and the step that read h0 on its own."""
    rows_of_gates, P = dxg.shape[-1], h.shape[-1]
    if inputs.batch_sizes is not None or inputs.reset is not None or h.shape[0] == 0:
        before = h_previous(h, inputs)
        return matmul(dxg.reshape(before.shape[0], rows_of_gates).t(), before)
    later, earlier, first = (dxg[:-1], h[1:], dxg[-1]) if inputs.reverse else (dxg[1:], h[:-1], dxg[0])
    rows = later.shape[0] * later.shape[1]
    product = matmul(later.reshape(rows, rows_of_gates).t(), earlier.reshape(rows, P))
    return matmul(first.t(), inputs.h0, add_to=product)


dynamo_skip(__name__)
