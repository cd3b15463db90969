"""Gradients of weights and input from those of the recurrence: one product each, in plain torch operations.

`lstm_backward` gives dxg, the gradient at the pre-activations of all steps, and d_hr, that at the projected h; what
follows is linear in them. Torch can differentiate, batch and compile what is here, so double backward and torch.func
need no further rule. Only what is asked for is computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlstm.backends.common import before_projection, h_previous
from fastlstm.backends.device import own_types, products_of
from fastlstm.products import product


def of_weights(
    wanted: tuple[bool, ...], dxg: Tensor, d_hr: Tensor, inputs: tuple, h: Tensor, c: Tensor, gates: Tensor
) -> tuple[Tensor | None, ...]:
    """Return dx, None (ids), dw_x, dbias, dw_hh, dw_hr, where wanted; `inputs` are those of `lstm_forward`.

    On a GPU float32 is multiplied as cuDNN's LSTM would: as TF32 where its switch allows that. Autocast has no say: a
    gradient has the type of what it is of, also where backward runs inside autocast and forward did not.
    """
    with products_of(dxg), own_types(dxg):
        return _of_weights(wanted, dxg, d_hr, inputs, h, c, gates)


def _of_weights(
    wanted: tuple[bool, ...], dxg: Tensor, d_hr: Tensor, inputs: tuple, h: Tensor, c: Tensor, gates: Tensor
) -> tuple[Tensor | None, ...]:
    x, ids, w_x, _, w_hh, _, h0, _, batch_sizes, offsets, reset, reverse, _ = inputs
    rows = dxg.reshape(math.prod(dxg.shape[:-1]), dxg.shape[-1])  # Size.numel() would fix a dynamic shape
    dx = dw_x = dbias = dw_hh = dw_hr = None
    if wanted[0]:
        dx = product(rows, w_x).view(x.shape)
    if wanted[2] and ids is None:
        dw_x = product(rows.t(), x.reshape(rows.shape[0], x.shape[-1]))
    elif wanted[2]:
        dw_x = torch.ops.fastlstm.sum_by_id(rows, ids.reshape(rows.shape[0]), w_x.shape[0])
    if wanted[3]:
        dbias = rows.sum(0)
    if wanted[4]:
        dw_hh = _recurrent(dxg, h, h0, batch_sizes, offsets, reset, reverse)
    if wanted[5]:
        y = before_projection(inputs, h, c, gates)
        dw_hr = (d_hr.reshape(y.shape[0], d_hr.shape[-1]).to(y.dtype).t() @ y).to(w_hh.dtype)
    return dx, None, dw_x, dbias, dw_hh, dw_hr


def _recurrent(
    dxg: Tensor,
    h: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> Tensor:
    """dW_hh = dxgᵀ @ h_prev, (4H, P). Dense: shifted views, no copy, and the step that read h0 on its own."""
    W, P = dxg.shape[-1], h.shape[-1]
    if batch_sizes is not None or reset is not None or h.shape[0] == 0:
        before = h_previous(h, h0, batch_sizes, offsets, reset, reverse)
        return product(dxg.reshape(before.shape[0], W).t(), before)
    later, earlier, first = (dxg[:-1], h[1:], dxg[-1]) if reverse else (dxg[1:], h[:-1], dxg[0])
    rows = later.shape[0] * later.shape[1]
    return product(first.t(), h0, add_to=product(later.reshape(rows, W).t(), earlier.reshape(rows, P)))
