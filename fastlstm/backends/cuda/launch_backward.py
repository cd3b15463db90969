"""The way back: from the op's gradients to launches of the CUDA kernels; forward and what both share is in launch.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlstm.backends.cuda.launch import (
    TYPE_CODES,
    LaunchPlan,
    Runtime,
    StepRows,
    padded_width,
    use_sequence,
)
from fastlstm.ops.arguments import SAVE_CELLS, Grads, OpInputs, Saved
from fastlstm.ops.recompute import recompute_gates
from fastlstm.ops.reference import cell_type

_PARTIAL_BYTES = 64 << 20  # of partial sums that blocks exchange


class BackwardLayer:
    """One layer in one direction on its way back: its outputs, its argument block, and what must live until the launch.

    Args:
        rt, kernel, inputs, saved, grads, steps: what runs it.
        bias: (row_blocks, 4H) float32 zeros, to which `lean` adds the sums of d_gates over the sequences of a row block.
    """

    def __init__(
        self,
        rt: Runtime,
        kernel: str,
        inputs: OpInputs,
        saved: Saved,
        grads: Grads,
        steps: StepRows,
        bias: Tensor | None = None,
    ):
        w_hh, w_hr, h0, c0 = inputs.w_hh, inputs.w_hr, inputs.h0, inputs.c0
        h, c, gates = saved
        dh, dc, dh_n, dc_n = grads
        H, P, B, dtype, cell = inputs.H, w_hh.shape[1], steps.B, w_hh.dtype, cell_type(w_hh.dtype)
        self.inputs, self.steps, self.lead, self.N = inputs, steps, h.shape[:-1], steps.starts[-1]
        N = self.N
        self.d_gates = w_hh.new_empty(N, 4 * H)
        self.dh_proj = w_hh.new_empty((N, P) if w_hr is not None else (0,))
        state_type = rt.product_type(dtype) if kernel == "per_step" else torch.float32
        self.dh_state = torch.zeros_like(h0, dtype=state_type) if dh_n is None else dh_n.to(state_type, copy=True)
        self.dc_state = torch.zeros_like(c0) if dc_n is None else dc_n.clone()
        self.args = args = rt.lib.BackwardArgs()
        self.kept: list[Tensor] = []  # that the launch reads
        self.bias = bias
        if not N:
            return
        if inputs.save == SAVE_CELLS:
            wide = _wide_product(rt) if rt.product_type(h.dtype) != h.dtype else None
            gates = recompute_gates(inputs, h, wide)
            self.kept.append(gates)
        use_sequence(rt, args, steps, H, inputs.offsets, inputs.reset)
        args.dh, args.dc = rt.use("dh", dh, "in", dtype, N * P), rt.use("dc", dc, "in", cell, N * H)
        args.gates = rt.use("gates", gates, "in", dtype, N * 4 * H)
        args.c, args.c0 = rt.use("c", c, "in", cell, N * H), rt.use("c0", c0, "in", cell, B * H)
        # W_hhᵀ: the recurrent kernels load a column of W_hh 16 bytes at a time
        w_hh_t = None if kernel == "per_step" else self._transposed(w_hh)
        args.w_hh_t = rt.use("w_hh_t", w_hh_t, "in", dtype, 4 * H * P)
        args.d_gates = rt.use("d_gates", self.d_gates, "out", dtype, N * 4 * H)
        args.dh_state = rt.use("dh_state", self.dh_state, "state", state_type, B * P)
        args.dc_state = rt.use("dc_state", self.dc_state, "state", cell, B * H)

    def _transposed(self, matrix: Tensor) -> Tensor:
        self.kept.append(matrix.t().contiguous())
        return self.kept[-1]

    def exchange(self, rt: Runtime) -> Tensor:
        """Make the memory in which blocks exchange d_gates: gates of a few units side by side, not d_gates's order."""
        width = padded_width(self.args.H, self.d_gates.element_size())
        exchange = self.d_gates.new_empty(self.N, 4 * width)
        self.args.exchange = rt.use("exchange", exchange, "out", exchange.dtype, self.N * 4 * width)
        self.args.exchange_width = width
        self.kept.append(exchange)
        return exchange

    def use_layer_above(self, rt: Runtime, exchange: Tensor, w_ih: Tensor) -> None:
        """Take the gradient at h from the layer above in the same launch: its exchange, and its W_ih (4H, H)."""
        count, dtype = 4 * self.args.H * self.args.H, w_ih.dtype
        self.args.above = rt.use("above", exchange, "state", dtype, self.N * 4 * self.args.H)
        self.args.w_above_t = rt.use("w_above_t", self._transposed(w_ih), "in", dtype, count)

    def results(self) -> tuple[Tensor, ...]:
        """d_gates, dh_proj, dh0, dc0, as the op returns them."""
        w_hh = self.inputs.w_hh
        dh_proj = self.dh_proj.view(*self.lead, w_hh.shape[1]) if self.inputs.w_hr is not None else self.dh_proj
        return self.d_gates.view(*self.lead, w_hh.shape[0]), dh_proj, self.dh_state.to(w_hh.dtype), self.dc_state


def backward(
    rt: Runtime, plan: LaunchPlan, inputs: OpInputs, saved: Saved, grads: Grads, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Run the backward recurrence as `plan` says; returns as `fastlstm.ops.reference.backward`.

    bias: as `BackwardLayer` takes it.
    """
    kernel, steps = plan.backward.kernel, StepRows.of(saved.h, inputs.h0.shape[0], inputs.batch_sizes, inputs.reverse)
    layer = BackwardLayer(rt, kernel, inputs, saved, grads, steps, bias)
    if layer.N:
        _BACKWARD[kernel](rt, plan, layer)
    return layer.results()


def _wide_product(rt: Runtime) -> Callable[[Tensor, Tensor], Tensor]:
    """Multiplies half types into a new float32 tensor."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        out = a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32)
        rt.product(a, b, out)
        return out

    return product


def _per_step_backward(rt: Runtime, plan: LaunchPlan, layer: BackwardLayer) -> None:
    w_hh, w_hr, reset, args = layer.inputs.w_hh, layer.inputs.w_hr, layer.inputs.reset, layer.args
    d_gates, dh_proj, dh_state, steps = layer.d_gates, layer.dh_proj, layer.dh_state, layer.steps
    code, products = plan.code(w_hh.dtype), TYPE_CODES[dh_state.dtype]
    dh_unprojected = None if w_hr is None else w_hh.new_empty(steps.B, args.H, dtype=dh_state.dtype)
    args.P = w_hh.shape[1]
    args.dh_unprojected = rt.use("dh_unprojected", dh_unprojected, "state", dh_state.dtype, steps.B * args.H)
    args.dh_proj = rt.use("dh_proj", None if w_hr is None else dh_proj, "out", w_hh.dtype, args.N * args.P)
    stopped = None if reset is None else reset.reshape(-1, 1)
    for k in reversed(range(steps.T)):
        rows = steps.rows(k, k + 1)
        n = rows.stop - rows.start
        if w_hr is not None:
            rt.lib.per_step_backward_sum(code, products, args, k, n, rt.stream)
            rt.product(dh_proj[rows], w_hr, dh_unprojected[:n])
        rt.lib.per_step_backward(code, products, args, k, n, rt.stream)
        rt.product(d_gates[rows], w_hh, dh_state[:n])
        if stopped is not None:
            dh_state[:n].masked_fill_(stopped[rows], 0)


def _single_block_backward(rt: Runtime, plan: LaunchPlan, layer: BackwardLayer) -> None:
    args = layer.args
    args.t, args.begin, args.end = plan.backward.t, 0, layer.steps.T
    rt.lib.single_block_backward(plan.code(layer.d_gates.dtype), args, rt.stream)


def _cooperative_backward(rt: Runtime, plan: LaunchPlan, layer: BackwardLayer) -> None:
    """One cooperative launch, or several where partial sums would take too much memory; of `lean` too."""
    args, steps, d_gates = layer.args, layer.steps, layer.d_gates
    args.t = tiling = plan.backward.t
    args.bias = rt.use("bias", layer.bias, "state", torch.float32, tiling.row_blocks * 4 * args.H)
    layer.exchange(rt)
    per_step = rt.lib.partial_words(tiling, steps.B) if tiling.gate_splits > 1 else 0
    most = min(steps.T, max(1, _PARTIAL_BYTES // (4 * per_step))) if per_step else steps.T
    partial = d_gates.new_empty(most * per_step, dtype=torch.float32) if per_step else None
    args.partial = rt.use("partial", partial, "out", torch.float32, most * per_step)
    launch = getattr(rt.lib, f"{plan.backward.kernel}_backward")
    for end in range(steps.T, 0, -most):
        args.begin, args.end = max(0, end - most), end
        rows = steps.rows(args.begin, end)
        launch(plan.code(d_gates.dtype), args, rows.start, rows.stop - rows.start, rt.stream)


_BACKWARD = {
    "per_step": _per_step_backward,
    "single_block": _single_block_backward,
    "cooperative": _cooperative_backward,
    "lean": _cooperative_backward,
}
