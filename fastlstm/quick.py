"""The short way for small calls: a module call without gradients in one call of the native module.

For one step of a small LSTM the checks and the dispatch of the general path cost more than the kernels. Whatever is not
plain goes the general way, which also says what is wrong with bad arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from fastlstm import backends, dispatch

if TYPE_CHECKING:
    from fastlstm.nn import LSTM

_MOST_ROWS = 4  # T · B up to which reading W_hh unpacked beats packing it
_C = torch._C


def run(lstm: LSTM, x: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """Output and (h_n, c_n) of a call with few rows, or None where that does not apply. x: (T, B, I), T · B ≤ 4."""
    if type(x) is not Tensor or x.dim() != 3 or lstm.batch_first or lstm.bidirectional or lstm.proj_size:
        return None
    T, B, I = x.shape
    if not 0 < T * B <= _MOST_ROWS or lstm.input_size != I or (lstm.training and lstm.drops()):
        return None
    if not undisturbed() or dispatch.forced() not in (None, "cpu"):
        return None
    weights = plain_weights(lstm)
    if weights is None or not _fits(x):
        return None
    L, H = lstm.num_layers, lstm.hidden_size
    if hx is not None:
        if type(hx) is not tuple or len(hx) != 2:
            return None
        for state in hx:
            if type(state) is not Tensor or not _fits(state) or state.shape != (L, B, H) or not state.is_contiguous():
                return None
    found = backends.load("cpu").run_layers(weights, L, lstm.bias, x, hx, H)
    if found is not None:
        dispatch.note_plan("cpu: all layers in one call, weights read where they lie")
    return found


def undisturbed() -> bool:
    """Whether nothing wants to see torch operations go by: tracing, transforms, modes, autocast, forward gradients."""
    return (
        not _C._are_functorch_transforms_active()
        and not _C._len_torch_dispatch_stack()
        and not _C._len_torch_function_stack()
        and not _C._is_any_autocast_enabled()
        and _C._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def plain_weights(lstm: LSTM) -> list[Tensor] | None:
    """The parameters as they are now, or None if one is missing or not a contiguous float32 CPU tensor of its size."""
    parameters, weights = lstm._parameters, []
    for name in lstm._flat_weights_names:
        w = parameters.get(name)
        if type(w) not in (Parameter, Tensor) or not _fits(w) or not w.is_contiguous():
            return None
        weights.append(w)
    H, width = lstm.hidden_size, lstm.input_size
    for layer in range(lstm.num_layers):
        w_ih, w_hh, *biases = weights[layer * len(weights) // lstm.num_layers :][: len(weights) // lstm.num_layers]
        if w_ih.shape != (4 * H, width) or w_hh.shape != (4 * H, H) or any(b.shape != (4 * H,) for b in biases):
            return None
        width = H
    return weights


def _fits(value: Tensor) -> bool:
    return value.dtype is torch.float32 and value.is_cpu and value.layout is torch.strided
