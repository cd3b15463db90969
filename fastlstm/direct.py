"""The direct way of a call on the CPU: all layers in one autograd Function over the native kernels.

It gives what the general way through `fastlstm.layers` gives, without torch's dispatcher in between, which at H = 64
costs a fifth of a training step. It takes calls on plain CPU tensors that nobody looks at (no transform, mode, tracing,
autocast or profiler) and that ask for nothing extra (resets, cell states, gates, masks, recomputation); everything is
looked at anew in every call. What it does not take, and every wrong argument, goes the general way.
"""

from __future__ import annotations

from functools import cache
from operator import ge
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastlstm import checks, dispatch, native
from fastlstm.backends import cpu_layers
from fastlstm.backends.cpu_layers import Layout
from fastlstm.layers import State
from fastlstm.products import REALS, is_plain, unwatched

if TYPE_CHECKING:
    from fastlstm.nn import LSTM
    from fastlstm.tokens import TokenLSTM

Found = tuple[Tensor, Tensor, Tensor]


class Order(NamedTuple):
    """How rows of a PackedSequence lie: sequences that live at each step, and where each came from; nothing if dense."""

    batch_sizes: Tensor | None = None
    sorted_indices: Tensor | None = None


def run(lstm: LSTM, x: Tensor, order: Order, hx: State | None) -> Found | None:
    """Output, h_n and c_n in the order of the rows; None where the direct way does not apply, with nothing done.

    x: time first, (T, B, I), or the data (N, I) of a PackedSequence; hx: in the caller's order of sequences, or None.
    """
    if not (is_plain(x) and _applies(lstm)):  # only a plain one is sure to have sizes
        return None
    if x.dim() != (3 if order.batch_sizes is None else 2) or x.shape[-1] != lstm.input_size:
        return None
    weights = _weights(lstm, x.dtype)
    if weights is None:
        return None
    return _call(lstm, x, order, hx, weights)


def run_tokens(lstm: TokenLSTM, ids: Tensor, order: Order, hx: State | None) -> Found | None:
    """The same for a TokenLSTM; ids: (T, B), or (N,) of a PackedSequence."""
    inner = lstm.lstm
    if not _applies(inner) or ids.dim() != (2 if order.batch_sizes is None else 1) or not is_plain(ids):
        return None
    weights = _weights(inner, inner._parameters.get("weight_hh_l0", ids).dtype)
    embedding = None if lstm.embedding is None else lstm.embedding._parameters.get("weight")
    if weights is None or (lstm.embedding is not None and not (embedding is not None and is_plain(embedding))):
        return None
    if ids.dtype != torch.int64 or (embedding is not None and embedding.dtype != weights[0].dtype):
        return None
    if embedding is not None and not (embedding.is_contiguous() and embedding.shape[-1] == inner.input_size):
        return None
    V = inner.input_size if embedding is None else len(embedding)
    return _call(inner, ids, order, hx, weights, V, embedding) if V else None  # the general way says what is wrong


def _applies(lstm: LSTM) -> bool:
    """Whether nothing is asked for that the direct way does not have, of a module or of torch."""
    from fastlstm.nn import LSTM

    if type(lstm) is not LSTM or native.why_not() is not None or dispatch.forced() not in (None, "cpu"):
        return False
    between = lstm.num_layers > 1 and lstm.dropout
    if lstm.training and (between or lstm.weight_drop or lstm.input_dropout or lstm.locked_dropout):
        return False
    return not (lstm.recompute and torch.is_grad_enabled()) and _undisturbed()


def _undisturbed() -> bool:
    """Whether nobody looks at torch's operations."""
    return unwatched() and not torch.is_autocast_enabled("cpu")


def _weights(lstm: LSTM, dtype: torch.dtype) -> list[Tensor] | None:
    """The parameters in torch's flat order; None where one is missing, not plain, or not of the size it should be."""
    parameters, G, P = lstm._parameters, 4 * lstm.hidden_size, lstm.proj_size or lstm.hidden_size
    if dtype not in REALS:
        return None
    directions = 2 if lstm.bidirectional else 1
    tail = ((G, P), *((G,), (G,)) * bool(lstm.bias), *((P, lstm.hidden_size),) * bool(lstm.proj_size))
    first, later = ((G, lstm.input_size), *tail), ((G, P * directions), *tail)
    shapes = first * directions + later * (directions * (lstm.num_layers - 1))
    names = lstm._flat_weights_names
    if len(names) != len(shapes):
        return None
    weights = [parameters.get(name) for name in names]
    for weight, shape in zip(weights, shapes, strict=True):
        if weight is None or weight.shape != shape or weight.dtype != dtype:
            return None
        if not (is_plain(weight) and weight.is_contiguous()):
            return None
    return weights


def _state(lstm: LSTM, hx: State | None, B: int, like: Tensor, order: Tensor | None) -> State | None:
    """The initial state in the order of the rows; None where the given one is not plain or does not fit."""
    n, P = lstm.num_layers * (2 if lstm.bidirectional else 1), lstm.proj_size or lstm.hidden_size
    shapes = ((n, B, P), (n, B, lstm.hidden_size))
    if hx is None:
        h0, c0 = (torch.zeros(shape, dtype=like.dtype) for shape in shapes)
        return h0, c0
    if type(hx) not in (tuple, list) or len(hx) != 2:
        return None
    for v, shape in zip(hx, shapes, strict=True):
        if not isinstance(v, Tensor) or not is_plain(v) or v.shape != shape or v.dtype != like.dtype:
            return None
    h0, c0 = hx if order is None else lstm.permute_hidden(hx, order)
    return h0.contiguous(), c0.contiguous()


def _steps_and_rows(source: Tensor, batch_sizes: Tensor | None) -> tuple[int, int] | None:
    """T and B; None where there is nothing to run, or batch_sizes is not what packing makes."""
    if source.numel() == 0:
        return None
    if batch_sizes is None:
        return source.shape[0], source.shape[1]
    if not is_plain(batch_sizes) or batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1:
        return None
    sizes = batch_sizes.tolist()
    right = sizes and sizes[-1] > 0 and sum(sizes) == source.shape[0] and all(map(ge, sizes, sizes[1:]))
    return (len(sizes), sizes[0]) if right else None


def _call(
    lstm: LSTM,
    source: Tensor,
    order: Order,
    hx: State | None,
    weights: list[Tensor],
    V: int = 0,
    embedding: Tensor | None = None,
) -> Found | None:
    """V: how many ids there are, 0 where source holds vectors."""
    batch_sizes, dtype, P = order.batch_sizes, weights[0].dtype, lstm.proj_size
    sizes = _steps_and_rows(source, batch_sizes)
    if sizes is None:
        return None
    T, B = sizes
    dense = not V and batch_sizes is None
    rule = (dtype, lstm.hidden_size, B, bool(P), torch.is_grad_enabled())
    if dense and dispatch.forced() is None and dispatch.torch_wins(*rule):
        return None
    state = _state(lstm, hx, B, weights[0], order.sorted_indices)
    if state is None:
        return None
    source = source.contiguous()
    if V and native.load().any_outside(source.data_ptr(), source.numel(), V):
        checks.ids_in_range(source, V)
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    kind = (lstm.num_layers, 2 if lstm.bidirectional else 1, bool(lstm.bias), bool(P), V)
    layout = Layout(*kind, batch_sizes, T, B, lstm.hidden_size, P or lstm.hidden_size, dtype, torch.get_num_threads())
    dispatch.note_plan(_plan(dtype, layout.threads, native.load().isa()))
    arguments = (source, *state, embedding, *weights)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in arguments):
        return cpu_layers.Layers.apply(layout, *arguments)
    return cpu_layers.forward(layout, *arguments[:4], weights, keep=False)[:3]


@cache
def _plan(dtype: torch.dtype, threads: int, isa: str) -> str:
    """What `backends.cpu.plan` says of such a call."""
    return f"cpu: fused {isa} recurrence, {str(dtype).removeprefix('torch.')}, up to {threads} threads"
