"""From the op's tensors to kernel launches. Imported at first use, since it imports the kernels and so Triton.

Dense and packed rows are the same here: (N, ·), with the first row of every step in `starts` when packed. H and P are
padded with zeros to multiples of 16 first, and memory to 16 bytes: the kernels then load whole vectors, compile once per
tile, and need no registers for odd addresses (unaligned, the widest single_block kernel spills). Padded units stay zero.
Nothing waits for the device, and tensors are allocated only through torch, so calls are stream-ordered and capturable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.backends.device import multiplies_wide, product_into, products_as_cudnn
from fastlstm.backends.triton import interpreter, per_step, single_block, streamed
from fastlstm.backends.triton.math import INTERPRETED
from fastlstm.backends.triton.padding import cut_gates, cut_units, pad_gate_rows, pad_gates, pad_units, padded, to_tf32
from fastlstm.backends.triton.planner import Tile, TritonPlan
from fastlstm.ops.arguments import SAVE_ALL, SAVE_CELLS, Grads, OpInputs, Saved
from fastlstm.ops.recompute import recompute_gates
from fastlstm.ops.reference import HALF_TYPES

if INTERPRETED.value:
    interpreter.let_numbers_be_indices()

_start: ContextVar[Callable | None] = ContextVar("fastlstm_triton_start", default=None)


@contextmanager
def instead(start: Callable) -> Iterator[None]:
    """Inside a `with` block, hand every launch (kernel, grid, args, options) to `start` and launch nothing."""
    token = _start.set(start)
    try:
        yield
    finally:
        _start.reset(token)


def compile_only(kernel, grid: tuple[int, ...], args: tuple, options: dict) -> None:
    """Compile what a launch would run, for the current device; for `instead`."""
    kernel.warmup(*args, grid=grid, **options)


def _run(kernel, grid: tuple[int, ...], args: tuple, tile: Tile, constants: dict) -> None:
    # one block has the SM to itself: without maxnreg ptxas stops at 128 registers for a second one, and spills
    limits = {"maxnreg": min(255, 65536 // (32 * tile.warps)), "enable_fp_fusion": True}
    options = {**constants, "num_warps": tile.warps, "num_stages": tile.stages, **limits}
    start = _start.get()
    if start is None:
        kernel[grid](*args, **options)
    else:
        start(kernel, grid, args, options)


def _constants(plan: TritonPlan, tile: Tile) -> dict:
    size = {"HP": tile.BN} if plan.kernel == "single_block" else {"BN": tile.BN, "BK": tile.BK}
    return {"BM": tile.BM, **size, "PRECISION": plan.precision, "STAGES": tile.stages}


@contextmanager
def _guard(tensor: Tensor) -> Iterator[None]:
    """The tensor's device as the current one, and torch's float32 products as the kernels': TF32 where cuDNN's are."""
    with torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext(), products_as_cudnn(tensor.dtype):
        yield


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32)
    product_into(a, b, out)
    return out


def _tiles(count: int, size: int) -> int:
    return -(-count // size)


def _starts(offsets: Tensor | None, N: int) -> Tensor | None:
    """(T + 1,) first row of each step and, last, N; made on the device of `offsets`."""
    return None if offsets is None else F.pad(offsets, (0, 1), value=N)


def _bytes(reset: Tensor | None) -> Tensor | None:
    return None if reset is None else pad_units(reset.view(torch.uint8), 0)


class _Step(NamedTuple):
    """A step's first row among all N, and its number of rows; n 0 stands for no step."""

    base: int
    n: int


def _weights(plan: TritonPlan, w_hh: Tensor, wide: int, narrow: int) -> Tensor:
    """W_hh (4 wide, narrow) as the kernels read it: padded, and rounded once per call if tensor cores would cut it off.

    The single_block kernels round it themselves, once. The interpreter's products are exact.
    """
    w_hh = pad_units(pad_gate_rows(w_hh, wide), narrow)
    return to_tf32(w_hh) if plan.math == "tf32" and plan.kernel != "single_block" and w_hh.is_cuda else w_hh


def _order(T: int, B: int, batch_sizes: Tensor | None, reverse: bool) -> list[_Step]:
    """All steps in the order of processing, with an empty one before the first and after the last."""
    sizes = [B] * T if batch_sizes is None else batch_sizes.tolist()
    order, base = [], 0
    for n in sizes:
        order.append(_Step(base, n))
        base += n
    order = order[::-1] if reverse else order
    return [_Step(0, 0), *order, _Step(0, 0)]


def forward(plan: TritonPlan, inputs: OpInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the op's forward as `plan` says; returns as `fastlstm.ops.reference.forward`."""
    x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save = inputs
    T, lead = inputs.T, tuple(inputs.lead)
    (B, P), H = h0.shape, c0.shape[1]
    N = T * B if batch_sizes is None else lead[0]
    with _guard(w_hh):
        if N == 0:
            h, c = w_hh.new_empty(*lead, P), c0.new_empty((*lead, H) if save else (0,))
            return h, c, w_hh.new_empty((*lead, 4 * H) if save == SAVE_ALL else (0,)), h0.clone(), c0.clone()
        wide, narrow = padded(H), padded(P)
        if ids is None:
            bias = None if bias is None else pad_gates(bias, wide)
            x_gates = _input_side(x.reshape(N, x.shape[-1]), pad_gate_rows(w_x, wide), bias)
        else:
            ids, x_gates = pad_units(ids, 0), pad_gates(w_x, wide)
        h, c = w_hh.new_empty(*lead, narrow), c0.new_empty(*lead, wide) if save else None
        gates = (
            (x_gates.view(*lead, 4 * wide) if ids is None else w_hh.new_empty(*lead, 4 * wide))
            if save == SAVE_ALL
            else None
        )
        source = (x_gates, ids, _weights(plan, w_hh, wide, narrow), pad_units(h0, narrow), pad_units(c0, wide))
        if plan.kernel == "per_step":
            w_hr = None if w_hr is None else F.pad(w_hr, (0, wide - H, 0, narrow - P))
            order = _order(T, B, batch_sizes, reverse)
            h_n, c_n = _per_step_forward(plan, *source, w_hr, order, _bytes(reset), h, c, gates)
        else:
            h_n, c_n = _whole_forward(plan, *source, _starts(offsets, N), _bytes(reset), h, c, gates, T, reverse)
        c = c0.new_empty(0) if c is None else c
        gates = w_hh.new_empty(0) if gates is None else gates
        return (*map(cut_units, (h, c), (P, H)), cut_gates(gates, H), *map(cut_units, (h_n, c_n), (P, H)))


def _input_side(x: Tensor, w_x: Tensor, bias: Tensor | None) -> Tensor:
    """(N, 4H): the input's share of the pre-activations, one product for all steps."""
    return x @ w_x.t() if bias is None else torch.addmm(bias, x, w_x.t())


def _whole_forward(plan: TritonPlan, x_gates, ids, w_hh, h0, c0, starts, reset, h, c, gates, T, reverse):
    """One launch for the whole sequence."""
    (B, H), tile = c0.shape, plan.forward
    h_n = torch.empty_like(h0)
    grid = (_tiles(B, tile.BM),)
    sizes = (T, B, H, int(reverse))
    if plan.kernel == "single_block":
        c_n = torch.empty_like(c0)
        args = (x_gates, ids, w_hh, h0, c0, starts, reset, h, c, gates, h_n, c_n, *sizes)
        _run(single_block.forward, grid, args, tile, _constants(plan, tile))
    else:
        c_n = c0.clone()
        args = (x_gates, ids, w_hh, h0, starts, reset, h, c, gates, h_n, c_n, *sizes)
        _run(streamed.forward, grid, args, tile, _constants(plan, tile))
    return h_n, c_n


def _per_step_forward(plan: TritonPlan, x_gates, ids, w_hh, h0, c0, w_hr, order, reset, h, c, gates):
    """One launch per step, and with projection one matrix product."""
    (H, P), tile = (c0.shape[1], h0.shape[1]), plan.forward
    flat, h_n, c_n = h.view(-1, P), h0.clone(), c0.clone()
    h_unprojected = h if w_hr is None else w_hh.new_empty(h0.shape[0], H)
    constants = _constants(plan, tile)
    for before, now, after in zip(order, order[1:], order[2:], strict=False):
        grid = (_tiles(now.n, tile.BM), _tiles(H, tile.BN))
        unprojected_base = now.base if w_hr is None else 0
        args = (x_gates, ids, w_hh, h0, h, reset, h_unprojected, c, gates, c_n, *now, *before, unprojected_base, H, P)
        _run(per_step.forward, grid, args, tile, constants)
        if w_hr is not None:
            torch.mm(h_unprojected[: now.n], w_hr.t(), out=flat[now.base : now.base + now.n])
        if after.n < now.n:  # these rows end here
            h_n[after.n : now.n] = flat[now.base + after.n : now.base + now.n]
    return h_n, c_n


def backward(plan: TritonPlan, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the op's backward as `plan` says; returns as `fastlstm.ops.reference.backward`."""
    w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save = inputs[4:]
    h, c, gates = saved
    dh, dc, dh_n, dc_n = grads
    lead, (B, P), H = tuple(h.shape[:-1]), h0.shape, c0.shape[1]
    T = lead[0] if batch_sizes is None else batch_sizes.shape[0]
    N = h.numel() // P
    with _guard(w_hh):
        if N == 0:
            d_states = (torch.zeros_like(h0) if dh_n is None else dh_n, torch.zeros_like(c0) if dc_n is None else dc_n)
            dh_proj = w_hh.new_empty((*lead, P) if w_hr is not None else (0,))
            return w_hh.new_empty(*lead, 4 * H), dh_proj, *(d.clone() for d in d_states)
        if save == SAVE_CELLS:
            wide = _wide_product if h.is_cuda and h.dtype in HALF_TYPES and multiplies_wide() else None
            gates = recompute_gates(inputs, h, wide)
        wide, narrow = padded(H), padded(P)
        d_gates = w_hh.new_empty(*lead, 4 * wide)
        dh_proj = w_hh.new_empty((*lead, narrow) if w_hr is not None else (0,))
        incoming = (pad_units(dh, narrow), pad_units(dc, wide), pad_units(dh_n, narrow), pad_units(dc_n, wide))
        kept = (_weights(plan, w_hh, wide, narrow), pad_units(c0, wide), pad_units(c, wide), pad_gates(gates, wide))
        if plan.kernel == "per_step":
            w_hr = None if w_hr is None else F.pad(w_hr, (0, wide - H, 0, narrow - P))
            order = _order(T, B, batch_sizes, reverse)
            dh0, dc0 = _per_step_backward(plan, *incoming, *kept, w_hr, order, _bytes(reset), d_gates, dh_proj)
        else:
            starts = _starts(offsets, N)
            dh0, dc0 = _whole_backward(plan, *incoming, *kept, starts, _bytes(reset), d_gates, T, reverse)
        d_states = map(cut_units, (dh0, dc0), (P, H))
        return cut_gates(d_gates, H), cut_units(dh_proj, P), *d_states


def _whole_backward(plan: TritonPlan, dh, dc, dh_n, dc_n, w_hh, c0, c, gates, starts, reset, d_gates, T, reverse):
    """One launch for the whole sequence."""
    (B, H), tile = c0.shape, plan.backward
    dh0 = w_hh.new_empty(c0.shape)
    grid = (_tiles(B, tile.BM),)
    sizes = (T, B, H, int(reverse))
    if plan.kernel == "single_block":
        dc0 = torch.empty_like(c0)
        args = (dh, dc, dh_n, dc_n, w_hh, c0, c, gates, starts, reset, d_gates, dh0, dc0, *sizes)
        _run(single_block.backward, grid, args, tile, _constants(plan, tile))
    else:
        dc0 = torch.zeros_like(c0) if dc_n is None else dc_n.clone()
        args = (dh, dc, dh_n, w_hh, c0, c, gates, starts, reset, d_gates, dh0, dc0, *sizes)
        _run(streamed.backward, grid, args, tile, _constants(plan, tile))
    return dh0, dc0


def _per_step_backward(plan: TritonPlan, dh, dc, dh_n, dc_n, w_hh, c0, c, gates, w_hr, order, reset, d_gates, dh_proj):
    """One launch per step and one more that leaves dh0; with projection two and a matrix product."""
    (B, H), P, tile = c0.shape, w_hh.shape[1], plan.backward
    dh0, dc0 = w_hh.new_empty(B, P), torch.zeros_like(c0) if dc_n is None else dc_n.clone()
    constants = _constants(plan, tile)
    cell_constants = {"BM": tile.BM, "BN": tile.BN}
    for k in reversed(range(len(order) - 1)):
        before, now, later = order[k - 1] if k else _Step(0, 0), order[k], order[k + 1]
        rows = max(now.n, later.n)
        if w_hr is None:
            args = (dh, dc, dh_n, w_hh, c0, c, gates, reset, d_gates, dh0, dc0, *now, *before, *later, H)
            _run(per_step.backward, (_tiles(rows, tile.BM), _tiles(H, tile.BN)), args, tile, constants)
            continue
        args = (dh, dh_n, w_hh, reset, d_gates, dh_proj, dh0, *now, *later, H, P)
        _run(per_step.backward_projected, (_tiles(rows, tile.BM), _tiles(P, tile.BN)), args, tile, constants)
        if now.n:
            dh_unprojected = torch.mm(dh_proj.view(-1, P)[now.base : now.base + now.n], w_hr)
            args = (dh_unprojected, dc, c0, c, gates, reset, d_gates, dc0, *now, *before, H)
            _run(per_step.backward_cell, (_tiles(now.n, tile.BM), _tiles(H, tile.BN)), args, tile, cell_constants)
    return dh0, dc0
