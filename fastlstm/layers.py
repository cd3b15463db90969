"""Layers and directions of a module around the op, and torch's own path for the whole module.

`run` is plain Python composition: for every layer and direction one call of `ops.lstm_forward`, dropout in between
drawn as nn.LSTM draws it. `whole` hands the module to torch. `fastlstm.nn` decides between them and `fastlstm.quick`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm import dispatch, masks, offsets, ops
from fastlstm.reference import cell_type

if TYPE_CHECKING:
    from fastlstm.nn import LSTM

State = tuple[Tensor, Tensor]


class Rows(NamedTuple):
    """The input of a layer: (T, B, ·) vectors or (T, B) ids; packed: (N, ·) or (N,) with the batch sizes, (T,)."""

    data: Tensor
    batch_sizes: Tensor | None = None
    offsets: Tensor | None = None

    @staticmethod
    def of(data: Tensor, batch_sizes: Tensor | None) -> Rows:
        if batch_sizes is None:
            return Rows(data)
        return Rows(data, batch_sizes, offsets.of(batch_sizes, data.device))


class Results(NamedTuple):
    """What `run` returns: the last layer's h, the last states, and per layer all cell states and gates if asked for."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: list[Tensor]
    gates: list[Tensor]

    def shaped(self, change: Callable) -> Results:
        """With `change` applied to everything that has one row a step."""
        each = ([change(v) for v in per_layer] for per_layer in (self.cells, self.gates))
        return Results(change(self.output), self.h_n, self.c_n, *each)

    def without_batch(self, batch_dim: int) -> Results:
        """Of an unbatched call."""
        squeezed = self.shaped(lambda v: v.squeeze(batch_dim))
        return squeezed._replace(h_n=self.h_n.squeeze(1), c_n=self.c_n.squeeze(1))

    def as_returned(self, cells: bool, gates: bool) -> tuple:
        """Output, the state, and what else was asked for."""
        return self.output, (self.h_n, self.c_n), *[self.cells] * bool(cells), *[self.gates] * bool(gates)


def whole(
    lstm: LSTM, x: Tensor, batch_sizes: Tensor | None, hx: State, weights: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole module by torch's own LSTM: output, h_n, c_n. It also says what is wrong with arguments."""
    options = (lstm.bias, lstm.num_layers, lstm.dropout, lstm.training, lstm.bidirectional)
    if not torch.compiler.is_compiling():
        lstm._update_flat_weights()
        dispatch.note_plan("torch: nn.LSTM's own kernels, the whole module")
    if batch_sizes is None:
        return torch._VF.lstm(x, hx, weights, *options, lstm.batch_first)
    return torch._VF.lstm(x, batch_sizes, hx, weights, *options)


def run(
    lstm: LSTM,
    rows: Rows,
    hx: State,
    weights: list[Tensor],
    *,
    tables: list[Tensor] | None = None,
    reset: Tensor | None = None,
    cells: bool = False,
    gates: bool = False,
) -> Results:
    """All layers and directions on the op.

    rows: the input, time first; hx: (layers × directions, B, ·) each; weights: torch's flat list; tables: one (V, 4H)
    table a direction when rows are ids; reset: (T, B) or (N,); cells, gates: keep those of every layer.
    """
    directions = 2 if lstm.bidirectional else 1
    save = _save(lstm, [rows.data, *hx, *weights, *(tables or ())], cells, gates)
    resets = _resets(rows, reset, directions)
    h0, c0 = hx[0].unbind(0), hx[1].to(cell_type(hx[0].dtype)).unbind(0)
    last, kept_cells, kept_gates = [], [], []
    for layer in range(lstm.num_layers):
        if tables is None or layer:
            rows = rows._replace(data=masks.locked(lstm, rows, first=layer == 0))
        found = []
        for d in range(directions):
            k = layer * directions + d
            table = tables[d] if tables is not None and layer == 0 else None
            found.append(_direction(lstm, k, rows, table, weights, h0[k], c0[k], resets[d], d == 1, save))
        h, c, g, h_n, c_n = zip(*found, strict=True)
        last += zip(h_n, c_n, strict=True)
        out, c, g = (v[0] if directions == 1 else torch.cat(v, -1) for v in (h, c, g))
        if cells:
            kept_cells.append(c.to(out.dtype))
        if gates:
            kept_gates.append(g.detach())
        if lstm.dropout and lstm.training and layer < lstm.num_layers - 1:
            out = F.dropout(out, lstm.dropout, training=True)
        rows = rows._replace(data=out)
    h_n, c_n = (_stacked(states, out.dtype) for states in zip(*last, strict=True))
    return Results(out, h_n, c_n, kept_cells, kept_gates)


def _stacked(states: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """One tensor (layers × directions, B, ·) of a type; a single state is not copied: the op has made it for this call."""
    state = states[0]
    if len(states) > 1 or torch.compiler.is_compiling():
        return torch.stack(states).to(dtype)
    if state.dtype != dtype:
        return state.unsqueeze(0).to(dtype)
    return _unsafe_view(state, (1, *state.shape))  # no view for autograd: h_n.detach_() is to work


_unsafe_view = torch.ops.aten._unsafe_view.default


def _direction(
    lstm: LSTM,
    k: int,
    rows: Rows,
    table: Tensor | None,
    weights: list[Tensor],
    h0: Tensor,
    c0: Tensor,
    reset: Tensor | None,
    reverse: bool,
    save: int,
) -> tuple[Tensor, ...]:
    """Layer and direction number k through the op: h, c, gates, h_n, c_n."""
    each = 2 + 2 * lstm.bias + bool(lstm.proj_size)
    w_ih, w_hh, *rest = weights[k * each : (k + 1) * each]
    bias = rest[0] + rest[1] if lstm.bias and table is None else None
    w_hr = rest[-1] if lstm.proj_size else None
    w_hh = masks.weight_drop(lstm, w_hh)
    x, ids, w_x = (rows.data, None, w_ih) if table is None else (None, rows.data, table)
    return ops.run_forward(x, ids, w_x, bias, w_hh, w_hr, h0, c0, rows.batch_sizes, rows.offsets, reset, reverse, save)


def _save(lstm: LSTM, tensors: list[Tensor], cells: bool, gates: bool) -> int:
    """What the op keeps: 0 nothing, 1 cell states and gates, 2 cell states only."""
    needs_grad = torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
    if gates or (needs_grad and not lstm.recompute):
        return 1
    return 2 if cells or needs_grad else 0


def _resets(rows: Rows, reset: Tensor | None, directions: int) -> list[Tensor | None]:
    """The reset mask of each direction.

    True at t says that a sequence begins there: forward, the state is zero before step t; backward, which comes from
    later steps, it is zero before step t - 1.
    """
    if reset is None or directions == 1:
        return [reset] * directions
    never = torch.zeros((), dtype=torch.bool, device=reset.device)
    if rows.batch_sizes is None:
        return [reset, torch.cat([reset[1:], never.expand(1, reset.shape[1])])]
    after, goes_on = offsets.later(rows.offsets, reset.shape[0])
    return [reset, torch.where(goes_on, reset[after], never)]
