"""One layer and direction of a module on the op, and the shortcut for small calls."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm import backends, dispatch, ops


class Rows(NamedTuple):
    """The input of a layer: (T, B, ·) vectors or (T, B) ids; packed: (N, ·) or (N,) with the batch sizes."""

    data: Tensor
    batch_sizes: Tensor | None = None

    def with_data(self, data: Tensor) -> Rows:
        return Rows(data, self.batch_sizes)


def unpack_state(hx: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return h0 and c0 of every layer and direction; c0 in float32 for half types, as the op wants it."""
    h0, c0 = hx
    half = c0.dtype in (torch.bfloat16, torch.float16)
    return h0.unbind(0), (c0.float() if half else c0).unbind(0)


def direction(lstm, k: int, rows: Rows, table: Tensor | None, h0: Tensor, c0: Tensor, reverse: bool):
    """Run layer and direction number k; returns h of every step, h_n and c_n."""
    each = 2 + 2 * lstm.bias + bool(lstm.proj_size)
    weights = lstm._flat_weights[k * each : (k + 1) * each]
    if rows.data.dtype in (torch.bfloat16, torch.float16) and weights[1].dtype == torch.float32:
        weights = [w.to(rows.data.dtype) for w in weights]  # autocast
    bias = weights[2] + weights[3] if lstm.bias and table is None else None
    w_hr = weights[-1] if lstm.proj_size else None
    save = int(torch.is_grad_enabled())
    offsets = None if rows.batch_sizes is None else (rows.batch_sizes.cumsum(0) - rows.batch_sizes).to(h0.device)
    x, ids, w_x = (rows.data, None, weights[0]) if table is None else (None, rows.data, table)
    h, _, _, h_n, c_n = ops.lstm_forward(
        x, ids, w_x, bias, weights[1], w_hr, h0, c0, rows.batch_sizes, offsets, None, reverse, save
    )
    return h, h_n, c_n


def quick_stack(lstm, rows: Rows, hx: tuple[Tensor, Tensor]):
    """All layers of a small inference call in one native call, or None where that does not apply."""
    x = rows.data
    if torch.is_grad_enabled() or rows.batch_sizes is not None or torch.compiler.is_compiling():
        return None
    if x.dtype != torch.float32 or x.device.type != "cpu" or lstm.bidirectional or lstm.proj_size:
        return None
    if (lstm.training and lstm.dropout) or x.shape[0] * x.shape[1] > 4 or dispatch.forced() not in (None, "cpu"):
        return None
    cpu = backends.load("cpu")
    return cpu.run_layers(lstm._flat_weights, lstm.num_layers, lstm.bias, x, hx)
