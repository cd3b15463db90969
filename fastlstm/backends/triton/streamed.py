"""The streamed kernels: one launch for the whole sequence, W_hh read from L2 in tiles at every step; any H.

    forward     z = x_gates + h' W_hhᵀ, then the cell (cell.py); h', c': of the step before, zero at a reset
    backward    dh = dh_out + d_gates_next W_hh, then the cell's backward; d_gates_next: of the step after, zero where
                that step is reset

One program per batch tile runs all steps. h (forward) or d_gates (backward) of the step before is read from memory, after a
barrier of the block. Within a step the tiles of units and the blocks of the sum form one loop, so that loads of the next
tile are in flight while a tile's cell runs. Data that a step reads from the step before was written before the barrier;
prefetches do not cross a step. c_n (forward) and dc0 (backward) hold the running c and dc.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastlstm.backends.triton.cell import rows_kept, tile_backward, tile_columns, tile_forward
from fastlstm.backends.triton.math import dot, round_to, step_rows, tile_steps


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def forward(
    x_gates_ptr,  # (N, 4H) pre-activations, or the table (V, 4H) when ids are given
    ids_ptr,  # (N,) int64 or None
    w_ptr,  # (4H, H)
    h0_ptr,  # (B, H)
    starts_ptr,  # (T + 1,) int64 first row of each step, or None when dense
    reset_ptr,  # (N,) uint8 or None
    h_ptr,  # out (N, H), read again at the next step
    c_ptr,  # out (N, H) or None
    gates_ptr,  # out (N, 4H) or None; may be x_gates_ptr
    h_n_ptr,  # out (B, H)
    c_n_ptr,  # in: c0, out: c_n (B, H)
    T,
    B,
    H,
    reverse,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """h, c and gates of all steps: z = x_gates + h' W_hhᵀ; c = f c' + i g; h = o tanh(c)."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    state_row = rows.to(tl.int64) * H
    tiles = tl.cdiv(H, BN) * tl.cdiv(H, BK)
    steps = tile_steps(starts_ptr, T, tl.program_id(0) * BM)
    for s in tl.range(0, steps, num_stages=1):
        base, n = step_rows(starts_ptr, s, steps, B, reverse)
        before, n_before = step_rows(starts_ptr, s - 1, steps, B, reverse)
        _, n_next = step_rows(starts_ptr, s + 1, steps, B, reverse)
        live = rows < n
        row = base + rows
        row_in = row
        if ids_ptr is not None:
            row_in = tl.load(ids_ptr + row, mask=live, other=0)
        kept = rows_kept(reset_ptr, base, rows, live)
        h_prev = tl.where(rows < n_before, h_ptr + (before + rows) * H, h0_ptr + state_row)
        h_prev = tl.multiple_of(h_prev, [16])  # bytes; without saying so a load is one number wide
        z = tl.zeros((BM, 4 * BN), dtype=tl.float32)
        u0 = tl.full((), 0, tl.int32)
        k0 = tl.full((), 0, tl.int32)
        for _tile in tl.range(0, tiles, num_stages=STAGES):
            end = k0 + BK >= H
            k = k0 + tl.arange(0, BK)
            u, unit, column = tile_columns(u0, H, BN)
            x_mask = (rows < tl.where(k0 == 0, n, 0))[:, None] & (unit < H)[None, :]  # once for a tile of units
            x = tl.load(x_gates_ptr + row_in[:, None] * (4 * H) + column[None, :], mask=x_mask, other=0.0)
            a = tl.load(h_prev[:, None] + k[None, :], mask=kept[:, None] & (k < H)[None, :], other=0.0)
            b = tl.load(
                w_ptr + column[None, :] * H + k[:, None], mask=(k < H)[:, None] & (unit < H)[None, :], other=0.0
            )
            z = dot(a, b, tl.where(k0 == 0, x.to(tl.float32), z), PRECISION)
            if end:
                mask = live[:, None] & (u < H)[None, :]
                at_state = state_row[:, None] + u[None, :]
                c_prev = tl.load(c_n_ptr + at_state, mask=mask & kept[:, None], other=0.0)
                tile_forward(
                    z, c_prev, h_ptr, c_ptr, gates_ptr, h_n_ptr, c_n_ptr, rows, u0, base, base, n, n_next, H, BM, BN
                )  # fmt: skip
            u0 += tl.where(end, BN, 0)
            k0 = tl.where(end, 0, k0 + BK)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def backward(
    dh_ptr,  # (N, H) or None
    dc_ptr,  # (N, H) or None
    dh_n_ptr,  # (B, H) or None
    w_ptr,  # (4H, H)
    c0_ptr,  # (B, H)
    c_ptr,  # (N, H)
    gates_ptr,  # (N, 4H)
    starts_ptr,  # (T + 1,) int64 first row of each step, or None when dense
    reset_ptr,  # (N,) uint8 or None
    d_gates_ptr,  # out (N, 4H), read again at the next step
    dh0_ptr,  # out (B, H)
    dc0_ptr,  # in: dc_n, out: dc0 (B, H)
    T,
    B,
    H,
    reverse,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """d_gates of all steps, dh0, dc0: dh = dh_out + d_gates_next W_hh; dc = dc_out + dc_next + dh o (1 - tanh²(c))."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    state_row = rows.to(tl.int64) * H
    steps = tile_steps(starts_ptr, T, tl.program_id(0) * BM)
    for back in tl.range(0, steps + 1, num_stages=1):  # the last round only makes dh0
        s = steps - 1 - back
        base, n = step_rows(starts_ptr, s, steps, B, reverse)
        before, n_before = step_rows(starts_ptr, s - 1, steps, B, reverse)
        later, n_later = step_rows(starts_ptr, s + 1, steps, B, reverse)
        live = rows < n
        row = base + rows
        kept = rows_kept(reset_ptr, base, rows, live)
        flows = rows_kept(reset_ptr, later, rows, rows < n_later)  # into them a gradient comes from the step after
        K = tl.where(n_later > 0, 4 * H, 1)  # nothing to sum in the first round
        tiles = tl.cdiv(H, BN) * tl.cdiv(K, BK)
        d_h = tl.zeros((BM, BN), dtype=tl.float32)
        u0 = tl.full((), 0, tl.int32)
        k0 = tl.full((), 0, tl.int32)
        for _tile in tl.range(0, tiles, num_stages=STAGES):
            end = k0 + BK >= K
            k = k0 + tl.arange(0, BK)
            u = u0 + tl.arange(0, BN)
            a_mask = flows[:, None] & (k < 4 * H)[None, :]
            a = tl.load(d_gates_ptr + (later + rows)[:, None] * (4 * H) + k[None, :], mask=a_mask, other=0.0)
            b = tl.load(w_ptr + k[:, None] * H + u[None, :], mask=(k < 4 * H)[:, None] & (u < H)[None, :], other=0.0)
            d_h = dot(a, b, tl.where(k0 == 0, 0.0, d_h), PRECISION)
            if end:
                mask = live[:, None] & (u < H)[None, :]
                at_state = state_row[:, None] + u[None, :]
                gone = (rows < n_later) & (rows >= n)
                d_h0 = round_to(d_h, dh0_ptr.dtype.element_ty)
                tl.store(dh0_ptr + at_state, d_h0, mask=gone[:, None] & (u < H)[None, :])
                dh = d_h
                if dh_n_ptr is not None:
                    joins = (rows >= n_later)[:, None]
                    dh += tl.load(dh_n_ptr + at_state, mask=mask & joins, other=0.0).to(tl.float32)
                if dh_ptr is not None:
                    dh += tl.load(dh_ptr + row[:, None] * H + u[None, :], mask=mask, other=0.0).to(tl.float32)
                tile_backward(
                    dh, dc_ptr, c0_ptr, c_ptr, gates_ptr, d_gates_ptr, dc0_ptr, rows, kept, u0, base, n, before, n_before,
                    H, BM, BN,
                )  # fmt: skip
            u0 += tl.where(end, BN, 0)
            k0 = tl.where(end, 0, k0 + BK)
        tl.debug_barrier()
