"""The LSTM cell on registers, forward and backward, and its loads and stores for kernels that work in tiles of units
(per_step and streamed). Written once for all Triton kernels.

    i, f, o = σ(z_i), σ(z_f), σ(z_o);  g = tanh(z_g);  c = f c' + i g;  h = o tanh(c)
    dc += dh o (1 - tanh²(c));  dc' = dc f
    d_gates_i = dc g i (1 - i);    d_gates_f = dc c' f (1 - f)
    d_gates_g = dc i (1 - g²);  d_gates_o = dh tanh(c) o (1 - o)

Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastlstm.backends.triton.math import join_gates, round_to, sigmoid, split_gates, tanh


@triton.jit
def cell_forward(z, c_prev, BM: tl.constexpr, BN: tl.constexpr):
    """Gates i, f, g, o, c and h = o ⊙ tanh(c), each (BM, BN), from pre-activations z (BM, 4 BN) and c_prev (BM, BN)."""
    i, f, g, o = split_gates(z, BM, BN)
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c_prev + i * g
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def cell_backward(gates, tanh_c, c_prev, dh, dc, BM: tl.constexpr, BN: tl.constexpr):
    """d_gates (BM, 4 BN) and dc of the step before (BM, BN). dh, dc: the gradients that come to o ⊙ tanh(c) and to c."""
    i, f, g, o = split_gates(gates, BM, BN)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    di = dc * g * i * (1.0 - i)
    df = dc * c_prev * f * (1.0 - f)
    dg = dc * i * (1.0 - g * g)
    do = dh * tanh_c * o * (1.0 - o)
    return join_gates(di, df, dg, do, BM, BN), dc * f


@triton.jit
def tile_columns(u0, H, BN: tl.constexpr):
    """Units (BN,) from u0 on; for the columns of a product over all four gates, unit and column of 4H, (4 BN,) each."""
    unit = u0 + tl.arange(0, 4 * BN) % BN
    return u0 + tl.arange(0, BN), unit, tl.arange(0, 4 * BN) // BN * H + unit


@triton.jit
def tile_forward(
    z, c_prev, h_ptr, c_ptr, gates_ptr, h_n_ptr, c_n_ptr, rows, u0, h_base, base, n, n_next, H,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Run the cell on z (BM, 4 BN) and write what it makes for the rows below n.

    h = o ⊙ tanh(c) goes to rows from h_base on, c and gates to rows from base on, and c to c_n; where rows end, from
    n_next on, h goes to h_n. c, gates and h_n may be None.
    """
    u, unit, column = tile_columns(u0, H, BN)
    row = rows + base
    mask = (rows < n)[:, None] & (u < H)[None, :]
    i, f, g, o, c, h = cell_forward(z, c_prev, BM, BN)
    h = round_to(h, h_ptr.dtype.element_ty)
    tl.store(h_ptr + (rows + h_base)[:, None] * H + u[None, :], h, mask=mask)
    at_state = rows.to(tl.int64)[:, None] * H + u[None, :]
    if h_n_ptr is not None:
        tl.store(h_n_ptr + at_state, h, mask=mask & (rows >= n_next)[:, None])
    tl.store(c_n_ptr + at_state, c, mask=mask)
    if c_ptr is not None:
        tl.store(c_ptr + row[:, None] * H + u[None, :], c, mask=mask)
    if gates_ptr is not None:
        gates = round_to(join_gates(i, f, g, o, BM, BN), gates_ptr.dtype.element_ty)
        gate_mask = (rows < n)[:, None] & (unit < H)[None, :]
        tl.store(gates_ptr + row[:, None] * (4 * H) + column[None, :], gates, mask=gate_mask)


@triton.jit
def tile_backward(
    dh, dc_ptr, c0_ptr, c_ptr, gates_ptr, d_gates_ptr, dc0_ptr, rows, kept, u0, base, n, before, n_before, H,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """From dh (BM, BN) to d_gates and the running dc in dc0. kept: rows of the step whose state was not reset before it."""
    u, unit, column = tile_columns(u0, H, BN)
    live, inside = rows < n, (u < H)[None, :]
    mask = live[:, None] & inside
    gate_mask = live[:, None] & (unit < H)[None, :]
    row = rows + base
    at = row[:, None] * H + u[None, :]
    at_state = rows.to(tl.int64)[:, None] * H + u[None, :]
    at_gates = row[:, None] * (4 * H) + column[None, :]
    gates = tl.load(gates_ptr + at_gates, mask=gate_mask, other=0.0).to(tl.float32)
    tanh_c = tanh(tl.load(c_ptr + at, mask=mask, other=0.0))
    at_before = (rows + before)[:, None] * H + u[None, :]
    c_prev = tl.load(c_ptr + at_before, mask=(kept & (rows < n_before))[:, None] & inside, other=0.0)
    c_prev += tl.load(c0_ptr + at_state, mask=(kept & (rows >= n_before))[:, None] & inside, other=0.0)
    dc = tl.load(dc0_ptr + at_state, mask=mask, other=0.0)
    if dc_ptr is not None:
        dc += tl.load(dc_ptr + at, mask=mask, other=0.0)
    d_gates, dc = cell_backward(gates, tanh_c, c_prev, dh, dc, BM, BN)
    tl.store(d_gates_ptr + at_gates, round_to(d_gates, d_gates_ptr.dtype.element_ty), mask=gate_mask)
    tl.store(dc0_ptr + at_state, tl.where(kept[:, None], dc, 0.0), mask=mask)


@triton.jit
def rows_kept(reset_ptr, base, rows, live):
    """Those of the rows `live` whose state is not reset before a step with its first row at `base`."""
    if reset_ptr is not None:
        live = live & (tl.load(reset_ptr + base + rows, mask=live, other=0) == 0)
    return live
