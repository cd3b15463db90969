"""THE definition of the op: one LSTM layer in one direction, forward and hand-derived backward, one step at a time.

    (i, f, g, o) = (σ, σ, tanh, σ)(x_t W_xᵀ + bias + h_{t-1} W_hhᵀ)
    c_t = f ⊙ c_{t-1} + i ⊙ g
    h_t = o ⊙ tanh(c_t)                     with projection: h_t = (o ⊙ tanh(c_t)) W_hrᵀ

Every backend is judged against this file in float64. It is written to be read: no speed, no in-place update, so that
torch can also differentiate through it (double backward rests on that). Rows of all steps lie one after the other, step
by step: dense input is the packed layout with B rows at every step. For half types h is rounded when it is stored, and
the recurrence reads the rounded h; all arithmetic and the cell state are float32.

Shapes: T steps, B batch, N rows (T·B when dense), I input, V vocabulary, H hidden, P width of h (H without projection).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastlstm.ops.arguments import SAVE_ALL, SAVE_CELLS

HALF_TYPES = (torch.bfloat16, torch.float16)


def forward(
    x: Tensor | None,
    ids: Tensor | None,
    w_x: Tensor,
    bias: Tensor | None,
    w_hh: Tensor,
    w_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    save: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the whole sequence: hidden states h, cell states c, activated gates, and the last states h_n, c_n.

    x: (T, B, I) or (N, I), or ids: (T, B) or (N,) with w_x the table (V, 4H); w_x: (4H, I); bias: (4H,);
    w_hh: (4H, P); w_hr: (P, H); h0: (B, P); c0: (B, H); batch_sizes: (T,) rows per step, None when dense;
    offsets: first row of each step (not needed here); reset: (T, B) or (N,), true where the incoming state is zero;
    reverse: steps run T-1 … 0; save: 0 keeps neither c nor gates, 1 both, 2 only c (what is not kept: shape (0,)).
    """
    dtype, cell = w_hh.dtype, cell_type(w_hh.dtype)
    inputs = x if ids is None else ids
    x_gates = by_step(input_gates(x, ids, w_x, bias).to(cell), inputs, batch_sizes)
    resets = by_step(None if reset is None else reset.reshape(-1, 1), inputs, batch_sizes)
    h_state, c_state = h0.to(cell), c0.to(cell)
    h, c, gates = {}, {}, {}
    for t, _, n in steps(inputs, batch_sizes, reverse):
        keep = None if resets is None else ~resets[t]
        h_prev, c_prev = _kept(h_state[:n], keep), _kept(c_state[:n], keep)
        i, f, g, o = activate(x_gates[t] + h_prev @ w_hh.to(cell).t())
        c[t] = f * c_prev + i * g
        h_unprojected = o * torch.tanh(c[t])
        h[t] = (h_unprojected if w_hr is None else h_unprojected @ w_hr.to(cell).t()).to(dtype)
        gates[t] = torch.cat([i, f, g, o], 1).to(dtype)
        # rows beyond n have ended (forward) or not begun (reverse): they keep their state
        h_state, c_state = torch.cat([h[t].to(cell), h_state[n:]]), torch.cat([c[t], c_state[n:]])
    lead = inputs.shape[: 2 if batch_sizes is None else 1]
    return (
        _stack(h, lead, w_hh.new_empty(0, w_hh.shape[1])),
        _stack(c, lead, c_state.new_empty(0, c0.shape[1])) if save else c_state.new_empty(0),
        _stack(gates, lead, w_hh.new_empty(0, w_hh.shape[0])) if save == SAVE_ALL else w_hh.new_empty(0),
        h_state.to(dtype, copy=True),
        c_state.clone(),
    )


def backward(
    dh: Tensor | None,
    dc: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor | None,
    ids: Tensor | None,
    w_x: Tensor,
    bias: Tensor | None,
    w_hh: Tensor,
    w_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    save: int,
    h: Tensor,
    c: Tensor,
    gates: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the recurrence: d_gates at the pre-activations, dh_proj at the projected h, dh0 and dc0.

    dh, dc: shaped as h, c; dh_n: (B, P); dc_n: (B, H); each may be None, meaning zero. h, c, gates: what forward
    returned with this `save`, 1 or 2 (2: the gates are computed again). Returns d_gates (T, B, 4H) or (N, 4H); dh_proj shaped
    as h, or (0,) without projection; dh0 (B, P); dc0 (B, H). Gradients of weights and of x follow by one product each.
    """
    dtype, cell = w_hh.dtype, cell_type(w_hh.dtype)
    w_rec, lead = w_hh.to(cell), h.shape[:-1]
    x_gates = input_gates(x, ids, w_x, bias) if save == SAVE_CELLS else None
    kept_gates = None if save == SAVE_CELLS else gates
    flat = [
        None if v is None else v.reshape(lead.numel(), v.shape[-1]).to(cell)
        for v in (dh, dc, h, c, x_gates, kept_gates)
    ]
    flat.append(None if reset is None else reset.reshape(-1, 1))
    inputs = x if ids is None else ids
    dh, dc, h, c, x_gates, gates, resets = (by_step(v, inputs, batch_sizes) for v in flat)
    dh_state = torch.zeros_like(h0, dtype=cell) if dh_n is None else dh_n.to(cell)
    dc_state = torch.zeros_like(c0, dtype=cell) if dc_n is None else dc_n.to(cell)
    order = list(steps(inputs, batch_sizes, reverse))
    d_gates, dh_proj = {}, {}
    for k in reversed(range(len(order))):
        t, _, n = order[k]
        keep = None if resets is None else ~resets[t]
        c_prev = _kept(_previous(c, c0.to(cell), order, k), keep)
        if gates is None:
            h_prev = _kept(_previous(h, h0.to(cell), order, k), keep)
            parts = activate(x_gates[t] + h_prev @ w_rec.t())
        else:
            parts = gates[t].chunk(4, 1)
        dh_proj[t] = dh_state[:n] if dh is None else dh_state[:n] + dh[t]
        dh_unprojected = dh_proj[t] if w_hr is None else dh_proj[t] @ w_hr.to(cell)
        dc_in = dc_state[:n] if dc is None else dc_state[:n] + dc[t]
        d_gates[t], dc_prev = _unit_gradients(dh_unprojected, dc_in, parts, c_prev, torch.tanh(c[t]))
        dh_state = torch.cat([_kept(d_gates[t] @ w_rec, keep), dh_state[n:]])
        dc_state = torch.cat([_kept(dc_prev, keep), dc_state[n:]])
    return (
        _stack(d_gates, lead, dh_state.new_empty(0, w_hh.shape[0])).to(dtype),
        w_hh.new_empty(0) if w_hr is None else _stack(dh_proj, lead, dh_state.new_empty(0, w_hh.shape[1])).to(dtype),
        dh_state.to(dtype, copy=True),
        dc_state.clone(),
    )


def sum_by_id(rows: Tensor, ids: Tensor, V: int) -> Tensor:
    """(V, W): the rows (N, W) summed by their id (N,)."""
    return rows.new_zeros(V, rows.shape[1]).index_add(0, ids, rows)


def _unit_gradients(
    dh: Tensor, dc: Tensor, gates: tuple[Tensor, ...], c_prev: Tensor, tanh_c: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: gradients at the pre-activations (n, 4H) and the cell state before, from those at o tanh(c) and c."""
    i, f, g, o = gates
    dc = dc + dh * o * (1 - tanh_c**2)
    parts = (dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o))
    return torch.cat(parts, 1), dc * f


def _kept(value: Tensor, keep: Tensor | None) -> Tensor:
    """The value, zero in rows that are not kept."""
    return value if keep is None else value.masked_fill(~keep, 0)


def cell_type(dtype: torch.dtype) -> torch.dtype:
    """The type of cell states and arithmetic: float32 for half types, else the type itself."""
    return torch.float32 if dtype in HALF_TYPES else dtype


def input_gates(x: Tensor | None, ids: Tensor | None, w_x: Tensor, bias: Tensor | None) -> Tensor:
    """The input's share of the pre-activations of every row: (N, 4H), in the cell type."""
    cell = cell_type(w_x.dtype)
    if ids is not None:
        return rows_of(w_x.to(cell), ids)
    x_gates = x.reshape(x.shape[:-1].numel(), x.shape[-1]).to(cell) @ w_x.to(cell).t()
    return x_gates if bias is None else x_gates + bias.to(cell)


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """The rows of a table (V, W) with these ids, (N, W); NaN for an id outside, which on a GPU no one looks for before."""
    ids = ids.reshape(-1)
    inside = ids.clamp(0, max(table.shape[0] - 1, 0))
    return table[inside].masked_fill((ids != inside)[:, None], math.nan)


def activate(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gates i, f, g, o (n, H) of the pre-activations z (n, 4H)."""
    i, f, g, o = z.chunk(4, 1)
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


def steps(inputs: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Iterator[tuple[int, slice, int]]:
    """Each step in the order of processing: its time t, its rows among all N, and how many rows it has. inputs: x or ids."""
    sizes, starts = _step_sizes(inputs, batch_sizes), [0]
    for n in sizes:
        starts.append(starts[-1] + n)
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        yield t, slice(starts[t], starts[t + 1]), sizes[t]


def by_step(values: Tensor | None, inputs: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, ...] | None:
    """The rows (n, ·) of each time t, of all rows (N, ·). inputs: x or ids.

    One split, and not a slice for each step: the gradient of a slice is as large as all rows, so that T of them would take
    a time that grows as T².
    """
    return None if values is None else values.split(_step_sizes(inputs, batch_sizes))


def _step_sizes(inputs: Tensor, batch_sizes: Tensor | None) -> list[int]:
    return [inputs.shape[1]] * inputs.shape[0] if batch_sizes is None else batch_sizes.tolist()


def _previous(values: tuple[Tensor, ...], initial: Tensor, order: list[tuple[int, slice, int]], k: int) -> Tensor:
    """The state that came into the k-th processed step: rows of the step before, or of the initial state."""
    n = order[k][2]
    if k == 0:
        return initial[:n]
    before, _, m = order[k - 1]
    return torch.cat([values[before][:n], initial[m:n]]) if m < n else values[before][:n]


def _stack(by_step: dict[int, Tensor], lead: torch.Size, empty: Tensor) -> Tensor:
    """All rows in the order of time, shaped (T, B, ·) or (N, ·)."""
    rows = torch.cat([by_step[t] for t in sorted(by_step)]) if by_step else empty
    return rows.reshape(*lead, rows.shape[-1])
