"""The single_block kernels: W_hh is read once, stays in shared memory, and one program runs a batch tile through all steps.

    forward     z = x_gates + h' W_hhᵀ, then the cell (cell.py); h', c': of the step before, zero at a reset
    backward    dh = dh_out + d_gates_next W_hh, then the cell's backward; d_gates_next: of the step after, zero where
                that step is reset

For small H. The four gates of a tile are one product: column γ·HP + j of its result is gate γ of unit j, so the cell
reads its gates from the product's registers. The state stays in registers too. Loads that do not depend on the state (x_gates,
saved tensors) are software-pipelined: Triton issues them STAGES − 1 steps ahead, so their latency overlaps the
recurrence. That is legal because no step reads memory that the kernel itself wrote. One program per batch tile; no
program waits for another. Recurrent weights kept on the chip: persistent RNNs, Diamos et al. 2016.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastlstm.backends.triton.cell import cell_backward, cell_forward, tile_columns
from fastlstm.backends.triton.math import dot, join_gates, round_to, step_rows, tanh, tile_steps, weights


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def forward(
    x_gates_ptr,  # (N, 4H) pre-activations, or the table (V, 4H) when ids are given
    ids_ptr,  # (N,) int64 or None
    w_ptr,  # (4H, H)
    h0_ptr,  # (B, H)
    c0_ptr,  # (B, H)
    starts_ptr,  # (T + 1,) int64 first row of each step, or None when dense
    reset_ptr,  # (N,) uint8 or None
    h_ptr,  # out (N, H)
    c_ptr,  # out (N, H) or None
    gates_ptr,  # out (N, 4H) or None; may be x_gates_ptr
    h_n_ptr,  # out (B, H)
    c_n_ptr,  # out (B, H)
    T,
    B,
    H,
    reverse,
    BM: tl.constexpr,
    HP: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """h, c and gates of all steps: z = x_gates + h' W_hhᵀ; c = f c' + i g; h = o tanh(c)."""
    lane = tl.arange(0, BM)
    tile = tl.program_id(0) * BM
    u, unit, column = tile_columns(0, H, HP)
    w_mask = (u < H)[:, None] & (unit < H)[None, :]
    w = weights(tl.load(w_ptr + column[None, :] * H + u[:, None], mask=w_mask, other=0.0), PRECISION)
    at = lane[:, None] * H + u[None, :]  # inside a tile offsets are 32-bit; what moves with time is a scalar, 64-bit
    at_gates = lane[:, None] * (4 * H) + column[None, :]
    inside = (lane < B - tile)[:, None] & (u < H)[None, :]
    state = tile.to(tl.int64) * H
    h = tl.load(h0_ptr + state + at, mask=inside, other=0.0)
    c = tl.load(c0_ptr + state + at, mask=inside, other=0.0)
    empty = tl.zeros((BM, HP), dtype=h.dtype)
    steps = tile_steps(starts_ptr, T, tile)
    for s in tl.range(0, steps, num_stages=STAGES):
        base, n = step_rows(starts_ptr, s, steps, B, reverse)
        live = lane < n - tile
        row = base + tile
        gate_mask = live[:, None] & (unit < H)[None, :]
        if ids_ptr is not None:
            ids = tl.load(ids_ptr + row + lane, mask=live, other=0)
            x = tl.load((x_gates_ptr + ids * (4 * H))[:, None] + column[None, :], mask=gate_mask, other=0.0)
        else:
            x = tl.load(x_gates_ptr + row * (4 * H) + at_gates, mask=gate_mask, other=0.0)
        h_prev, c_prev = h, c
        if reset_ptr is not None:
            keep = tl.load(reset_ptr + row + lane, mask=live, other=0)[:, None] == 0
            h_prev = tl.where(keep, h, empty)
            c_prev = tl.where(keep, c, 0.0)
        i, f, g, o, c_new, h_new = cell_forward(dot(h_prev, w, x.to(tl.float32), PRECISION), c_prev, BM, HP)
        h_new = round_to(h_new, h_ptr.dtype.element_ty)
        mask = live[:, None] & (u < H)[None, :]
        tl.store(h_ptr + row * H + at, h_new, mask=mask)
        if c_ptr is not None:
            tl.store(c_ptr + row * H + at, c_new, mask=mask)
        if gates_ptr is not None:
            gates = round_to(join_gates(i, f, g, o, BM, HP), gates_ptr.dtype.element_ty)
            tl.store(gates_ptr + row * (4 * H) + at_gates, gates, mask=gate_mask)
        if starts_ptr is not None:
            h_new = tl.where(live[:, None], h_new, h)
            c_new = tl.where(live[:, None], c_new, c)
        h, c = h_new, c_new
    tl.store(h_n_ptr + state + at, h, mask=inside)
    tl.store(c_n_ptr + state + at, c, mask=inside)


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def backward(
    dh_ptr,  # (N, H) or None
    dc_ptr,  # (N, H) or None
    dh_n_ptr,  # (B, H) or None
    dc_n_ptr,  # (B, H) or None
    w_ptr,  # (4H, H)
    c0_ptr,  # (B, H)
    c_ptr,  # (N, H)
    gates_ptr,  # (N, 4H)
    starts_ptr,  # (T + 1,) int64 first row of each step, or None when dense
    reset_ptr,  # (N,) uint8 or None
    d_gates_ptr,  # out (N, 4H)
    dh0_ptr,  # out (B, H)
    dc0_ptr,  # out (B, H)
    T,
    B,
    H,
    reverse,
    BM: tl.constexpr,
    HP: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """d_gates of all steps, dh0, dc0: dh = dh_out + d_gates_next W_hh; dc = dc_out + dc_next + dh o (1 - tanh²(c))."""
    lane = tl.arange(0, BM)
    tile = tl.program_id(0) * BM
    u, unit, column = tile_columns(0, H, HP)
    w_mask = (unit < H)[:, None] & (u < H)[None, :]
    w = weights(tl.load(w_ptr + column[:, None] * H + u[None, :], mask=w_mask, other=0.0), PRECISION)
    at = lane[:, None] * H + u[None, :]  # inside a tile offsets are 32-bit; what moves with time is a scalar, 64-bit
    at_gates = lane[:, None] * (4 * H) + column[None, :]
    inside = (lane < B - tile)[:, None] & (u < H)[None, :]
    state = tile.to(tl.int64) * H
    if starts_ptr is not None:  # in registers; asked for at every step ptxas spills here, and held when dense
        c0 = tl.load(c0_ptr + state + at, mask=inside, other=0.0)
    d_h = tl.zeros((BM, HP), dtype=tl.float32)
    d_c = tl.zeros((BM, HP), dtype=tl.float32)
    if dh_n_ptr is not None:
        d_h = tl.load(dh_n_ptr + state + at, mask=inside, other=0.0).to(tl.float32)
    if dc_n_ptr is not None:
        d_c = tl.load(dc_n_ptr + state + at, mask=inside, other=0.0)
    steps = tile_steps(starts_ptr, T, tile)
    for back in tl.range(0, steps, num_stages=STAGES):
        s = steps - 1 - back
        base, n = step_rows(starts_ptr, s, steps, B, reverse)
        before, n_before = step_rows(starts_ptr, s - 1, steps, B, reverse)
        live = lane < n - tile
        row = base + tile
        mask = live[:, None] & (u < H)[None, :]
        gate_mask = live[:, None] & (unit < H)[None, :]
        gates = tl.load(gates_ptr + row * (4 * H) + at_gates, mask=gate_mask, other=0.0).to(tl.float32)
        tanh_c = tanh(tl.load(c_ptr + row * H + at, mask=mask, other=0.0))
        known = (lane < n_before - tile)[:, None]  # the other rows began this step with c0
        c_prev = tl.load(c_ptr + (before + tile) * H + at, mask=known & (u < H)[None, :], other=0.0)
        if starts_ptr is not None:
            c_prev = tl.where(known, c_prev, c0)
        else:
            c_prev += tl.load(c0_ptr + state + at, mask=mask & (known == 0), other=0.0)
        if reset_ptr is not None:
            keep = tl.load(reset_ptr + row + lane, mask=live, other=0)[:, None] == 0
            c_prev = tl.where(keep, c_prev, 0.0)
        dh, d_cell = d_h, d_c
        if dh_ptr is not None:
            dh += tl.load(dh_ptr + row * H + at, mask=mask, other=0.0).to(tl.float32)
        if dc_ptr is not None:
            d_cell += tl.load(dc_ptr + row * H + at, mask=mask, other=0.0)
        d_gates, new_c = cell_backward(gates, tanh_c, c_prev, dh, d_cell, BM, HP)
        d_gates = round_to(d_gates, d_gates_ptr.dtype.element_ty)
        tl.store(d_gates_ptr + row * (4 * H) + at_gates, d_gates, mask=gate_mask)
        new_h = dot(d_gates, w, tl.zeros((BM, HP), dtype=tl.float32), PRECISION)
        if reset_ptr is not None:
            new_h = tl.where(keep, new_h, 0.0)
            new_c = tl.where(keep, new_c, 0.0)
        if starts_ptr is not None:
            new_h = tl.where(live[:, None], new_h, d_h)
            new_c = tl.where(live[:, None], new_c, d_c)
        d_h, d_c = new_h, new_c
    tl.store(dh0_ptr + state + at, round_to(d_h, dh0_ptr.dtype.element_ty), mask=inside)
    tl.store(dc0_ptr + state + at, d_c, mask=inside)
