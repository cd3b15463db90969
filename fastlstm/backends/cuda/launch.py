"""From the op's tensors to launches of the CUDA kernels, on a GPU (backend.py) or on the simulator of the tests.

All memory is torch's: outputs, states and scratch are tensors of the call's device, and their addresses go by name into an
argument block (csrc/cuda/args.h). A `Runtime` supplies launchers, stream and matrix products. The host never waits for the
device, and equal shapes give equal launches, so a CUDA graph can capture a call.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from fastlstm.memory import is_aligned
from fastlstm.ops.arguments import SAVE_ALL, OpInputs
from fastlstm.ops.reference import cell_type

TYPE_CODES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}
_TF32 = 1
_CHUNK_BYTES = 32 << 20  # of an input side (x_gates) that is not saved
_CHUNK_STEPS = 256  # at least, since each launch loads W_hh again, which costs as much as several steps


class Runtime(Protocol):
    """Launches kernels: a GPU's launchers, or the simulator's."""

    lib: Any  # fastlstm._C.cuda, or the simulator's build of it
    stream: int  # CUDA stream of the launches
    status: Tensor  # one int32 that a kernel may write and the host reads without waiting (status.py)

    def use(self, name: str, tensor: Tensor | None, mode: str, dtype: torch.dtype, count: int) -> int:
        """The address of a tensor for a kernel, which takes it for `count` elements of `dtype`; 0 for None.

        mode: in (read), out (written first) or state (both).
        """

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """out = a @ b on that stream; out may be float32 where a and b are half types."""

    def product_type(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which a product of two tensors of this type can be had: float32 if possible."""


@dataclass(frozen=True)
class LaunchPlan:
    """The planner's choices (csrc/cuda/plan.h) for both directions."""

    forward: Any
    backward: Any
    tf32: bool

    def code(self, dtype: torch.dtype) -> int:
        return _TF32 if self.tf32 and dtype == torch.float32 else TYPE_CODES[dtype]


@dataclass(frozen=True)
class StepRows:
    """The rows of each step; steps are counted in the order of processing."""

    T: int
    B: int
    starts: Sequence[int]  # (T + 1,) first row of each time, and N
    reverse: bool

    @staticmethod
    def of(source: Tensor, B: int, batch_sizes: Tensor | None, reverse: bool) -> StepRows:
        if batch_sizes is None:
            T = source.shape[0]
            return StepRows(T, B, range(0, T * B + 1, B) if B else (0,) * (T + 1), reverse)
        starts = (0, *accumulate(batch_sizes.tolist()))
        return StepRows(len(starts) - 1, B, starts, reverse)

    def rows(self, begin: int, end: int) -> slice:
        """The rows of steps begin … end - 1, which are contiguous."""
        first, last = (self.T - end, self.T - begin) if self.reverse else (begin, end)
        return slice(self.starts[first], self.starts[last])

    def chunks(self, most: int) -> Iterator[tuple[int, int]]:
        """Ranges of steps that have at most `most` rows together (but at least one step)."""
        begin = 0
        while begin < self.T:
            if self.reverse:
                end = self.T - bisect_left(self.starts, self.starts[self.T - begin] - most)
            else:
                end = bisect_right(self.starts, self.starts[begin] + most) - 1
            end = max(end, begin + 1)
            yield begin, end
            begin = end


def use_sequence(rt: Runtime, args: Any, steps: StepRows, H: int, offsets: Tensor | None, reset: Tensor | None) -> Any:
    args.T, args.B, args.H, args.N, args.reverse = steps.T, steps.B, H, steps.starts[-1], int(steps.reverse)
    args.offsets = rt.use("offsets", offsets, "in", torch.int64, steps.T)
    args.reset = rt.use("reset", reset, "in", torch.bool, args.N)
    args.status = rt.use("status", rt.status, "state", torch.int32, 1)
    return args


def padded_width(H: int, itemsize: int) -> int:
    """The hidden size, grown to a multiple of 16 bytes."""
    return -(-H * itemsize // 16) * 16 // itemsize


def input_side(x: Tensor, w_x: Tensor, bias: Tensor | None) -> Tensor:
    """x @ w_xᵀ + bias for rows x (n, I): (n, 4H)."""
    return x @ w_x.t() if bias is None else torch.addmm(bias, x, w_x.t())


class ForwardLayer:
    """One layer in one direction on its way to a launch: its outputs, its argument block, and what must live until then.

    Args:
        rt, kernel, inputs, steps: what runs it. h: where h is to be written, (N, P), or None for new memory.
        below: its input is h of the layer below in the same launch, which x is the memory of.
    """

    def __init__(
        self,
        rt: Runtime,
        kernel: str,
        inputs: OpInputs,
        steps: StepRows,
        *,
        h: Tensor | None = None,
        below: bool = False,
    ):
        w_hh, h0, save = inputs.w_hh, inputs.h0, inputs.save
        H, P, B, dtype, cell = inputs.H, w_hh.shape[1], steps.B, w_hh.dtype, cell_type(w_hh.dtype)
        self.rt, self.inputs, self.steps, self.N = rt, inputs, steps, steps.starts[-1]
        N = self.N
        self.h = w_hh.new_empty(N, P) if h is None else h
        self.c = w_hh.new_empty((N, H) if save else (0,), dtype=cell)
        in_place = save == SAVE_ALL and inputs.x is not None and not below  # gates take the place of the input side
        whole = save == SAVE_ALL and not in_place
        self.gates = w_hh.new_empty((N, 4 * H) if whole else (0,))
        per_step = kernel == "per_step"  # reads h_n as the state; the others only write it
        self.h_n, self.c_n = h0.clone() if per_step or not N else torch.empty_like(h0), inputs.c0.clone()
        self.needs_input_side = bool(N) and inputs.x is not None and not below and not in_place
        self.args = args = rt.lib.ForwardArgs()
        self.kept: list[Tensor] = []  # that the launch reads
        if not N:
            return
        if in_place:
            self.gates = input_side(inputs.x.reshape(N, -1), inputs.w_x, inputs.bias)
        if kernel == "lean":  # loads 16 bytes at a time
            w_hh, h0 = self._keep(aligned(w_hh)), self._keep(aligned(h0))
        use_sequence(rt, args, steps, H, inputs.offsets, inputs.reset)
        args.h = rt.use("h", self.h, "state" if h is not None else "out", dtype, N * P)
        args.c = rt.use("c", self.c if save else None, "out", cell, N * H)
        written = self.gates if save == SAVE_ALL else None
        args.gates = rt.use("gates", written, "state" if in_place else "out", dtype, N * 4 * H)
        args.h_n = rt.use("h_n", self.h_n, "state" if per_step else "out", dtype, B * P)
        args.c_n = rt.use("c_n", self.c_n, "state", cell, B * H)
        args.w_hh, args.h0 = rt.use("w_hh", w_hh, "in", dtype, 4 * H * P), rt.use("h0", h0, "in", dtype, B * P)
        zeros = self._keep(w_hh.new_zeros(H)) if kernel == "lean" and inputs.reset is not None else None
        args.zeros = rt.use("zeros", zeros, "in", dtype, H)
        if below:
            self._use_layer_below()
        elif inputs.x is None:
            self._use_table()
        elif in_place:
            args.x_gates = args.gates

    def _keep(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor)
        return tensor

    def _use_layer_below(self) -> None:
        rt, inputs, H, dtype = self.rt, self.inputs, self.inputs.H, self.h.dtype
        self.args.below = rt.use("below", inputs.x, "state", dtype, self.N * H)
        self.args.w_ih = rt.use("w_ih", self._keep(aligned(inputs.w_x)), "in", dtype, 4 * H * H)
        self.args.bias = rt.use("bias", inputs.bias, "in", dtype, 4 * H)

    def _use_table(self) -> None:
        rt, table, args = self.rt, self.inputs.w_x, self.args
        args.V, width = table.shape
        args.table = rt.use("table", table, "in", table.dtype, args.V * width)
        args.ids = rt.use("ids", self.inputs.ids, "in", torch.int64, self.N)
        args.absent = rt.use("absent", self._keep(table.new_full((width,), float("nan"))), "in", table.dtype, width)

    def input_side(self, begin: int, end: int) -> Tensor:
        """Multiply the input of steps begin … end - 1, which the caller keeps until they are launched."""
        rows, w_x = self.steps.rows(begin, end), self.inputs.w_x
        x_gates = input_side(self.inputs.x.reshape(self.N, -1)[rows], w_x, self.inputs.bias)
        row_bytes = w_x.shape[0] * x_gates.element_size()
        # the address that row 0 of all N would have; modulo 2^64, as the kernel's address arithmetic
        address = self.rt.use("x_gates", x_gates, "in", w_x.dtype, (rows.stop - rows.start) * w_x.shape[0])
        self.args.x_gates = (address - rows.start * row_bytes) % 2**64
        return x_gates

    def results(self) -> tuple[Tensor, ...]:
        """h, c, gates, h_n, c_n, as the op returns them."""
        lead, H, save = self.inputs.lead, self.inputs.H, self.inputs.save
        gates = self.gates.view(*lead, 4 * H) if save == SAVE_ALL else self.gates
        h, c = self.h.view(*lead, self.h.shape[1]), self.c.view(*lead, H) if save else self.c
        return h, c, gates, self.h_n, self.c_n


def input_chunks(layer: ForwardLayer, least: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of at least `least` steps in which an input side that is not saved is made: it stays small."""
    steps, w_x = layer.steps, layer.inputs.w_x
    row_bytes = w_x.shape[0] * w_x.element_size()
    return steps.chunks(max(1, _CHUNK_BYTES // row_bytes, (_CHUNK_STEPS if least is None else least) * steps.B))


def forward(rt: Runtime, plan: LaunchPlan, inputs: OpInputs) -> tuple[Tensor, ...]:
    """Run one layer in one direction as `plan` says; returns as `fastlstm.ops.reference.forward`."""
    kernel = plan.forward.kernel
    steps = StepRows.of(inputs.rows, inputs.h0.shape[0], inputs.batch_sizes, inputs.reverse)
    layer = ForwardLayer(rt, kernel, inputs, steps)
    if layer.N:
        run = _FORWARD[kernel](rt, plan, layer.args, steps, inputs.w_hh, inputs.w_hr, layer.h, layer.h_n)
        if layer.needs_input_side:
            for begin, end in input_chunks(layer, 1 if kernel == "per_step" else None):
                x_gates = layer.input_side(begin, end)  # a name keeps it until it is launched
                run(begin, end)
                del x_gates
        else:
            run(0, steps.T)
    return layer.results()


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy whose memory begins at a multiple of 16 bytes."""
    return tensor if is_aligned(tensor, 16) else tensor.clone()


def _per_step_forward(
    rt: Runtime, plan: LaunchPlan, args: Any, steps: StepRows, w_hh, w_hr, h: Tensor, h_n: Tensor
) -> Callable:
    """One matrix product (two with a projection) and one kernel per step."""
    dtype, H = w_hh.dtype, args.H
    hw = w_hh.new_empty(steps.B, 4 * H, dtype=rt.product_type(dtype))
    h_unprojected = None if w_hr is None else w_hh.new_empty(steps.B, H)
    args.hw = rt.use("hw", hw, "state", rt.product_type(dtype), steps.B * 4 * H)
    args.h_unprojected = rt.use("h_unprojected", h_unprojected, "out", dtype, steps.B * H)
    code, products = plan.code(dtype), TYPE_CODES[hw.dtype]

    def run(begin: int, end: int) -> None:
        for k in range(begin, end):
            rows = steps.rows(k, k + 1)
            n = rows.stop - rows.start
            rt.product(h_n[:n], w_hh.t(), hw[:n])
            rt.lib.per_step_forward(code, products, args, k, n, rt.stream)
            if w_hr is not None:
                rt.product(h_unprojected[:n], w_hr.t(), h[rows])
                h_n[:n] = h[rows]

    return run


def _single_block_forward(rt: Runtime, plan: LaunchPlan, args: Any, steps: StepRows, w_hh, w_hr, h, h_n) -> Callable:
    """One launch; no block waits for another."""
    args.t = plan.forward.t

    def run(begin: int, end: int) -> None:
        args.begin, args.end = begin, end
        rt.lib.single_block_forward(plan.code(w_hh.dtype), args, rt.stream)

    return run


def _cooperative_forward(
    rt: Runtime, plan: LaunchPlan, args: Any, steps: StepRows, w_hh, w_hr, h: Tensor, h_n
) -> Callable:
    """As `_waiting_forward`, with h in memory of its own where its rows are no multiple of 16 bytes."""
    width = padded_width(args.H, h.element_size())
    exchange = h if width == args.H else h.new_empty(h.shape[0], width)
    args.exchange = rt.use("exchange", exchange, "out", h.dtype, h.shape[0] * width)
    args.exchange_width = width
    return _waiting_forward(rt, plan, args, steps, w_hh, w_hr, h, h_n)


def _waiting_forward(rt: Runtime, plan: LaunchPlan, args: Any, steps: StepRows, w_hh, w_hr, h: Tensor, h_n) -> Callable:
    """A fill with kNotWritten, and one cooperative launch whose blocks exchange h; of `lean` h itself."""
    args.t = plan.forward.t
    launch = getattr(rt.lib, f"{plan.forward.kernel}_forward")

    def run(begin: int, end: int) -> None:
        args.begin, args.end = begin, end
        rows = steps.rows(begin, end)
        launch(plan.code(h.dtype), args, rows.start, rows.stop - rows.start, rt.stream)

    return run


_FORWARD = {
    "per_step": _per_step_forward,
    "single_block": _single_block_forward,
    "cooperative": _cooperative_forward,
    "lean": _waiting_forward,
}
