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


def quick_stack(lstm, x: Tensor, hx: tuple[Tensor, Tensor] | None):
    """All layers of a small inference call in one native call, or None where that does not apply.

    x: (T, B, I) with T * B <= 4. Every condition is checked here, before anything else, because for one step the checks
    and dispatch of the general path cost more than the kernels.
    """
    if x.dim() != 3 or lstm.batch_first or lstm.bidirectional or lstm.proj_size or (lstm.training and lstm.dropout):
        return None
    T, B, I = x.shape
    if not 0 < T * B <= 4 or I != lstm.input_size or dispatch.forced() not in (None, "cpu") or not _plain(x):
        return None
    weights, L, H = lstm._flat_weights, lstm.num_layers, lstm.hidden_size
    tensors = weights if hx is None else (*weights, *hx)
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_contiguous() or tensor.device.type != "cpu":
            return None
    if hx is not None and (hx[0].shape != (L, B, H) or hx[1].shape != (L, B, H)):
        return None  # the general path says what is wrong
    found = backends.load("cpu").run_layers(weights, L, lstm.bias, x, hx, H)
    if found is not None:
        dispatch.note_plan("cpu: all layers in one call, weights read where they lie")
    return found


def _plain(x: Tensor) -> bool:
    """Whether x is an ordinary float32 CPU tensor outside autocast, tracing and torch.func."""
    return (
        type(x) is Tensor
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._functorch.maybe_current_level()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )
