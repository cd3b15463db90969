"""The per_step kernels: one launch per step, a grid over batch tiles and tiles of units; W_hh is read once per step.

    forward     z = x_gates + h' W_hhᵀ, then the cell (cell.py); h', c': of the step before, zero at a reset
    backward    dh = dh_out + d_gates_next W_hh, then the cell's backward; d_gates_next: of the step after, zero where
                that step is reset

For large H, where one program cannot read all of W_hh in the time of a step, and for projection. Product and cell are one
kernel: the cell runs on the registers that hold z. The launches of a step need nothing from the host, so a sequence can be
captured in a CUDA graph. With projection the product with W_hr is torch's, between the launches: forward writes
h_unprojected = o ⊙ tanh(c), then h = h_unprojected W_hrᵀ; backward writes dh_proj, the gradient at the projected h, then
dh_unprojected = dh_proj W_hr.

Rows: a step's n rows begin at row `base` of all N; the step processed before it had n_before rows from row `before` on,
the one after it n_later from `later`. Rows of this step beyond the neighbour's count begin (or end) here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastlstm.backends.triton.cell import rows_kept, tile_backward, tile_columns, tile_forward
from fastlstm.backends.triton.math import dot, round_to


@triton.jit(do_not_specialize=["base", "n", "before", "n_before", "unprojected_base"])
def forward(
    x_gates_ptr,  # (N, 4H) pre-activations, or the table (V, 4H) when ids are given
    ids_ptr,  # (N,) int64 or None
    w_ptr,  # (4H, P)
    h0_ptr,  # (B, P)
    h_ptr,  # (N, P) h of the steps before
    reset_ptr,  # (N,) uint8 or None
    h_unprojected_ptr,  # out: o ⊙ tanh(c), (n, H) from row unprojected_base; h_ptr without projection
    c_ptr,  # out (N, H) or None
    gates_ptr,  # out (N, 4H) or None; may be x_gates_ptr
    c_n_ptr,  # in and out (B, H): the running cell state
    base,
    n,
    before,
    n_before,
    unprojected_base,
    H,
    P,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One step: z = x_gates + h' W_hhᵀ; c = f c' + i g; h_unprojected = o tanh(c), which is h without projection."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    u0 = tl.program_id(1) * BN
    u, unit, column = tile_columns(u0, H, BN)
    live, base = rows < n, base.to(tl.int64)
    row_in = rows + base
    if ids_ptr is not None:
        row_in = tl.load(ids_ptr + row_in, mask=live, other=0)
    kept = rows_kept(reset_ptr, base, rows, live)
    gate_mask = live[:, None] & (unit < H)[None, :]
    mask = live[:, None] & (u < H)[None, :]
    at_state = rows.to(tl.int64)[:, None] * H + u[None, :]
    x = tl.load(x_gates_ptr + row_in[:, None] * (4 * H) + column[None, :], mask=gate_mask, other=0.0)
    c_prev = tl.load(c_n_ptr + at_state, mask=mask & kept[:, None], other=0.0)
    h_prev = tl.where(rows < n_before, h_ptr + (rows + before.to(tl.int64)) * P, h0_ptr + rows.to(tl.int64) * P)
    h_prev = tl.multiple_of(h_prev, [16])  # bytes: rows begin there, and without saying so a load is one number wide
    z = tl.zeros((BM, 4 * BN), dtype=tl.float32)
    for k0 in tl.range(0, P, BK, num_stages=STAGES):
        k = k0 + tl.arange(0, BK)
        a = tl.load(h_prev[:, None] + k[None, :], mask=kept[:, None] & (k < P)[None, :], other=0.0)
        b = tl.load(w_ptr + column[None, :] * P + k[:, None], mask=(k < P)[:, None] & (unit < H)[None, :], other=0.0)
        z = dot(a, b, z, PRECISION)
    z += x.to(tl.float32)
    tile_forward(
        z, c_prev, h_unprojected_ptr, c_ptr, gates_ptr, None, c_n_ptr, rows, u0, unprojected_base.to(tl.int64), base,
        n, n, H, BM, BN,
    )  # fmt: skip


@triton.jit
def _incoming(
    d_gates_ptr, w_ptr, reset_ptr, dh_n_ptr, dh0_ptr, later, n, n_later, H, P, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """d_h (BM, BN) that comes into a step's h from the step after, or from dh_n; rows that ended leave it in dh0."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    u = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (u < P)[None, :]
    row_later = rows + later.to(tl.int64)
    flows = rows_kept(reset_ptr, later.to(tl.int64), rows, rows < n_later)
    d_h = tl.zeros((BM, BN), dtype=tl.float32)
    K = tl.where(n_later > 0, 4 * H, 0)
    for k0 in tl.range(0, K, BK, num_stages=STAGES):
        k = k0 + tl.arange(0, BK)
        a_mask = flows[:, None] & (k < 4 * H)[None, :]
        a = tl.load(d_gates_ptr + row_later[:, None] * (4 * H) + k[None, :], mask=a_mask, other=0.0)
        b = tl.load(w_ptr + k[:, None] * P + u[None, :], mask=(k < 4 * H)[:, None] & inside, other=0.0)
        d_h = dot(a, b, d_h, PRECISION)
    at_state = rows.to(tl.int64)[:, None] * P + u[None, :]
    gone = (rows < n_later) & (rows >= n)
    tl.store(dh0_ptr + at_state, round_to(d_h, dh0_ptr.dtype.element_ty), mask=gone[:, None] & inside)
    if dh_n_ptr is not None:
        joins = (rows >= n_later) & (rows < n)
        d_h += tl.load(dh_n_ptr + at_state, mask=joins[:, None] & inside, other=0.0).to(tl.float32)
    return d_h


@triton.jit
def _cell_backward(
    dh, dc_ptr, c0_ptr, c_ptr, gates_ptr, reset_ptr, d_gates_ptr, dc0_ptr, base, n, before, n_before, H,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """`tile_backward` for the rows and units of this program."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    base = base.to(tl.int64)
    kept = rows_kept(reset_ptr, base, rows, rows < n)
    tile_backward(
        dh, dc_ptr, c0_ptr, c_ptr, gates_ptr, d_gates_ptr, dc0_ptr, rows, kept, tl.program_id(1) * BN, base, n,
        before.to(tl.int64), n_before, H, BM, BN,
    )  # fmt: skip


@triton.jit(do_not_specialize=["base", "n", "before", "n_before", "later", "n_later"])
def backward(
    dh_ptr,  # (N, H) or None
    dc_ptr,  # (N, H) or None
    dh_n_ptr,  # (B, H) or None
    w_ptr,  # (4H, H)
    c0_ptr,  # (B, H)
    c_ptr,  # (N, H)
    gates_ptr,  # (N, 4H)
    reset_ptr,  # (N,) uint8 or None
    d_gates_ptr,  # out (N, 4H); rows of the step after are read
    dh0_ptr,  # out (B, H), of rows that began with the step after
    dc0_ptr,  # in and out (B, H): the running gradient at c
    base,
    n,
    before,
    n_before,
    later,
    n_later,
    H,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One step: dh = dh_out + d_gates_next W_hh; dc = dc_out + dc_next + dh o (1 - tanh²(c))."""
    dh = _incoming(
        d_gates_ptr, w_ptr, reset_ptr, dh_n_ptr, dh0_ptr, later, n, n_later, H, H, BM, BN, BK, PRECISION, STAGES
    )  # fmt: skip
    if dh_ptr is not None:
        rows = tl.program_id(0) * BM + tl.arange(0, BM)
        u = tl.program_id(1) * BN + tl.arange(0, BN)
        mask = (rows < n)[:, None] & (u < H)[None, :]
        dh += tl.load(dh_ptr + (rows + base.to(tl.int64))[:, None] * H + u[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    _cell_backward(
        dh, dc_ptr, c0_ptr, c_ptr, gates_ptr, reset_ptr, d_gates_ptr, dc0_ptr, base, n, before, n_before, H, BM, BN
    )  # fmt: skip


@triton.jit(do_not_specialize=["base", "n", "later", "n_later"])
def backward_projected(
    dh_ptr,  # (N, P) or None
    dh_n_ptr,  # (B, P) or None
    w_ptr,  # (4H, P)
    reset_ptr,  # (N,) uint8 or None
    d_gates_ptr,  # (N, 4H); rows of the step after are read
    dh_proj_ptr,  # out (N, P), the gradient at this step's projected h
    dh0_ptr,  # out (B, P), of rows that began with the step after
    base,
    n,
    later,
    n_later,
    H,
    P,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One step with projection, first part: dh_proj = dh_out + d_gates_next W_hh."""
    d_h = _incoming(
        d_gates_ptr, w_ptr, reset_ptr, dh_n_ptr, dh0_ptr, later, n, n_later, H, P, BM, BN, BK, PRECISION, STAGES
    )  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    u = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (rows < n)[:, None] & (u < P)[None, :]
    at = (rows + base.to(tl.int64))[:, None] * P + u[None, :]
    if dh_ptr is not None:
        d_h += tl.load(dh_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(dh_proj_ptr + at, round_to(d_h, dh_proj_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["base", "n", "before", "n_before"])
def backward_cell(
    dh_unprojected_ptr,  # (n, H) gradient at o ⊙ tanh(c) of this step
    dc_ptr,  # (N, H) or None
    c0_ptr,  # (B, H)
    c_ptr,  # (N, H)
    gates_ptr,  # (N, 4H)
    reset_ptr,  # (N,) uint8 or None
    d_gates_ptr,  # out (N, 4H)
    dc0_ptr,  # in and out (B, H): the running gradient at c
    base,
    n,
    before,
    n_before,
    H,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """One step with projection, second part: the cell's backward from dh_unprojected = dh_proj W_hr."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    u = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (rows < n)[:, None] & (u < H)[None, :]
    dh = tl.load(dh_unprojected_ptr + rows.to(tl.int64)[:, None] * H + u[None, :], mask=mask, other=0.0).to(tl.float32)
    _cell_backward(
        dh, dc_ptr, c0_ptr, c_ptr, gates_ptr, reset_ptr, d_gates_ptr, dc0_ptr, base, n, before, n_before, H, BM, BN
    )  # fmt: skip
