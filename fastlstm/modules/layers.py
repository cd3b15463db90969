"""The layers and directions of a call: one by one on the op, or all of them by torch's own LSTM.

`run_layers` is plain Python composition: for every layer and direction one call of the op, and between layers dropout that
is drawn as nn.LSTM draws it. Regularisation that nn.LSTM does not have: DropConnect on W_hh (Wan et al. 2013, Merity et al.
2017) and dropout whose mask is locked over time (Gal and Ghahramani 2016). Masks come from torch's generator, once a forward
call, so a seed reproduces them and torch.utils.checkpoint repeats them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm import dispatch
from fastlstm._torch_compat import is_plain_eager, torch_lstm
from fastlstm.modules.call import Call, Results
from fastlstm.ops import offsets
from fastlstm.ops.arguments import SAVE_ALL, SAVE_CELLS, SAVE_NOTHING, OpInputs, Spec
from fastlstm.ops.autocast import own_types
from fastlstm.ops.cell import Stack
from fastlstm.ops.lstm import run_forward
from fastlstm.ops.reference import cell_type
from fastlstm.ops.together import run_together
from fastlstm.ops.token_table import token_table


def run_torch(call: Call) -> Results:
    """All layers by torch's own LSTM, which also says what is wrong with arguments. Vectors only.

    Under autocast on CUDA torch casts for itself, all weights into one buffer that cuDNN needs; elsewhere, and in a graph of
    torch.compile, it would leave a part of them in float32, so it gets what is cast already.
    """
    compiling = torch.compiler.is_compiling()
    rows, hx, weights, off = call.rows, call.hx, call.weights, nullcontext()
    if call.before_autocast is not None and rows.is_cuda and not compiling:
        rows, hx, weights = call.before_autocast
    elif not call.own_functions:
        off = own_types(rows)
    stack, dropout = call.stack, call.masks.dropout
    options = (stack.bias, stack.layers, dropout, call.training, stack.directions == 2)
    if not compiling:
        dispatch.record_plan("torch: nn.LSTM's own kernels, the whole module")
    with off:
        if call.batch_sizes is None:
            out, h_n, c_n = torch_lstm(rows, hx, weights, *options, False)
        else:
            out, h_n, c_n = torch_lstm(rows, call.batch_sizes, hx, weights, *options)
    return Results(out, h_n, c_n, [], [])


def run_layers(call: Call) -> Results:
    """All layers and directions on the op; nothing follows autocast below this point."""
    with own_types(call.weights[1]):
        stack, masks, directions = call.stack, call.masks, call.stack.directions
        rows = call.rows
        starts = None if call.batch_sizes is None else offsets.of(call.batch_sizes, rows.device)
        resets, save = _resets(call, starts), _save(call)
        tables = token_tables(stack, call.weights, call.tokens.embedding) if call.tokens else None
        h0, c0 = call.hx[0].unbind(0), call.hx[1].to(cell_type(call.hx[0].dtype)).unbind(0)
        last, cells, gates = [], [], []
        prepared: dict[int, tuple[OpInputs, tuple[Tensor, ...] | None]] = {}  # what one launch has run already

        def inputs_of(k: int, x: Tensor) -> OpInputs:
            layer, d = divmod(k, directions)
            own, on_ids = stack.layer(call.weights, k), tables is not None and layer == 0
            return OpInputs(
                x=None if on_ids else x,
                ids=x if on_ids else None,
                w_x=tables[d] if on_ids else own.w_ih,
                bias=None if on_ids else own.bias,
                w_hh=F.dropout(own.w_hh, masks.weight_drop, training=True) if masks.weight_drop else own.w_hh,
                w_hr=own.w_hr,
                h0=h0[k],
                c0=c0[k],
                batch_sizes=call.batch_sizes,
                offsets=starts,
                reset=resets[d],
                reverse=d == 1,
                save=save,
            )

        for layer in range(stack.layers):
            if tables is None or layer:
                rows = _locked_dropout(masks.locked_dropout if layer else masks.input_dropout, rows, call, starts)
            first = layer * directions
            if first not in prepared:
                prepared = _together(call, layer, rows, inputs_of)
            outputs = []
            for k in range(first, first + directions):
                inputs, ready = prepared.pop(k, None) or (inputs_of(k, rows), None)
                if ready is None:
                    ready = run_forward(inputs if inputs.x is None else inputs._replace(x=rows))
                outputs.append(ready)
            h, c, g, h_n, c_n = zip(*outputs, strict=True)
            last += zip(h_n, c_n, strict=True)
            out, c, g = (v[0] if directions == 1 else torch.cat(v, -1) for v in (h, c, g))
            if call.cells:
                cells.append(c.to(out.dtype))
            if call.gates:
                gates.append(g.detach())
            if masks.dropout and layer < stack.layers - 1:
                out = F.dropout(out, masks.dropout, training=True)
            rows = out
        h_n, c_n = (_stacked(states, out.dtype) for states in zip(*last, strict=True))
        if directions == 1 and save != SAVE_NOTHING and out.is_cpu:  # the op keeps h; cuDNN keeps its output too
            out = out.clone() if stack.output_may_change(out.dtype, call.batch_sizes is not None) else out
        return Results(out, h_n, c_n, cells, gates)


def _most_in_one(call: Call, layer: int) -> tuple[int, bool]:
    """How many layers from this one on, or directions of it, may go into one launch; and whether they are layers."""
    stack, masks = call.stack, call.masks
    chained, most = stack.directions == 1, stack.directions
    if chained:
        most = 1 if masks.dropout or masks.locked_dropout else stack.layers - layer
    alone = stack.proj_size or torch.compiler.is_compiling() or not is_plain_eager()
    return (1 if alone else most), chained


def layers_in_one(call: Call, spec: Spec, layer: int = 0) -> tuple[int, bool]:
    """How many layers from one on, or directions of it, one launch runs; and whether they are layers.

    spec: the op's call of that layer.
    """
    most, chained = _most_in_one(call, layer)
    return (1 if most < 2 else dispatch.layers_together(spec, most, chained)), chained


def _together(
    call: Call, layer: int, rows: Tensor, inputs_of: Callable[[int, Tensor], OpInputs]
) -> dict[int, tuple[OpInputs, tuple[Tensor, ...] | None]]:
    """Layers from this one on, or both its directions, in one launch: of each the op's arguments and results.

    No results where they run one by one: no backend has such a launch, or something is dropped between layers.
    """
    stack = call.stack
    if _most_in_one(call, layer)[0] < 2:
        return {}
    first = layer * stack.directions
    inputs = [inputs_of(first, rows)]
    count, chained = layers_in_one(call, inputs[0].spec(), layer)
    for k in range(first + 1, first + count):
        x = inputs[0].w_hh.new_empty(*inputs[0].lead, stack.hidden_size) if chained else rows
        inputs.append(inputs_of(k, x))
    results = run_together(inputs, chained) if count > 1 else None
    if results is None:
        inputs = [own if own.x is None else own._replace(x=rows) for own in inputs]  # their memory for h is not needed
    return {first + i: (own, results and results[i]) for i, own in enumerate(inputs)}


def token_tables(stack: Stack, weights: list[Tensor], embedding: Tensor | None) -> list[Tensor]:
    """One (V, 4H) table a direction: every id's share of the first layer's gates, bias included."""
    first = (stack.layer(weights, d) for d in range(stack.directions))
    return [token_table(embedding, own.w_ih, own.bias) for own in first]


def _stacked(states: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """One tensor (layers · directions, B, ·) of a type; a single state is not copied: the op has made it for this call."""
    state = states[0]
    if len(states) > 1 or torch.compiler.is_compiling():
        return torch.stack(states).to(dtype)
    if state.dtype != dtype:
        return state.unsqueeze(0).to(dtype)
    return _unsafe_view(state, (1, *state.shape))  # no view for autograd: h_n.detach_() is to work


_unsafe_view = torch.ops.aten._unsafe_view.default


def _save(call: Call) -> int:
    """What the op keeps for backward and for the caller."""
    embedding = None if call.tokens is None else call.tokens.embedding
    tensors = (call.rows, *call.hx, *call.weights, *(() if embedding is None else (embedding,)))
    needs_grad = torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
    if call.gates or (needs_grad and not call.recompute):
        return SAVE_ALL
    return SAVE_CELLS if call.cells or needs_grad else SAVE_NOTHING


def _resets(call: Call, starts: Tensor | None) -> list[Tensor | None]:
    """The reset mask of each direction.

    True at t says that a sequence begins there: forward, the state is zero before step t; backward, which comes from
    later steps, it is zero before step t - 1.
    """
    reset = call.reset
    if reset is None or call.stack.directions == 1:
        return [reset] * call.stack.directions
    never = torch.zeros((), dtype=torch.bool, device=reset.device)
    if starts is None:
        return [reset, torch.cat([reset[1:], never.expand(1, reset.shape[1])])]
    after, goes_on = offsets.later(starts, reset.shape[0])
    return [reset, torch.where(goes_on, reset[after], never)]


def _locked_dropout(p: float, x: Tensor, call: Call, starts: Tensor | None) -> Tensor:
    """A layer's input under one mask (B, ·) for all steps."""
    if not p:
        return x
    if starts is None:
        return x * F.dropout(torch.ones_like(x[:1]), p, training=True)
    N = x.shape[0]
    mask = F.dropout(x.new_ones(int(call.batch_sizes[0]), x.shape[1]), p, training=True)
    return x * mask[torch.arange(N, dtype=torch.int64, device=x.device) - starts[offsets.steps(starts, N)]]
