"""Tilings of the recurrent kernels, one by one: microseconds of a step of the launch alone, beside what was predicted.

Of every call first the tilings of `lean`, in an item of their own, then those of `cooperative` and `single_block`.

Every result is compared with the definition's. A row holds all that a fit of the cost model needs: the tiling, the model's
counters of its work, the prediction, the time (slope between two lengths, so that launch and loading of W_hh cancel), and
the rest (`fixed_us`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import ALLOWED, GpuExecutor, choice_columns, dtype
from benchmarks.gpu_day.layers import relative_difference
from fastlstm.backends.cuda.launch import LaunchPlan
from fastlstm.ops import reference

BEST, MOST, MOST_LEAN = 10, 24, 12  # of the cost model's cheapest, of these and others, and of `lean`
SHORT, LONG = 32, 160
SLOW = 20e-3  # seconds of a launch of SHORT steps after which a tiling is left
FEW = 3e-3  # seconds above which it is timed once
IMPORTANT = ((1024, 16), (512, 16), (256, 16), (128, 16), (512, 64), (1024, 64), (768, 16), (256, 64), (1024, 128))


class LayerTensors(NamedTuple):
    """Inputs of the op, gradients and what forward saved, at the long length."""

    inputs: tuple
    dh: torch.Tensor
    saved: tuple

    def of(self, T: int) -> tuple[tuple, tuple, tuple]:
        """Inputs, gradients and saved tensors of the first T steps."""
        return (self.inputs[0][:T], *self.inputs[1:]), (self.dh[:T], None, None, None), tuple(v[:T] for v in self.saved)


def items(executor: GpuExecutor, *maths: str) -> list[Item]:
    executor.start()
    rest = [size for size in product((1024, 512, 256, 768, 128), (64, 16, 1, 128)) if size not in IMPORTANT]
    sizes = (*IMPORTANT, *rest) if maths == ("bf16",) else IMPORTANT[:6]
    if executor.rehearsal:
        sizes = ((24, 3),)
    calls = [
        (math, H, B, back, lean)
        for (H, B), math, back, lean in product(sizes, maths, (False, True), (True, False))
        if not (lean and math == "f32")
    ]
    return [
        Item(
            f"{m} H{H} B{B} {'backward' if back else 'forward'}{' lean' * lean}",
            (m, H, B, back, lean),
            f"{m} {back}{' lean' * lean}",
        )
        for m, H, B, back, lean in calls
    ]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    math, H, B, back, lean = item.values
    if executor.losses(item.key) > 1:
        yield {"item": item.what, "skipped": "two processes were lost with this type and direction"}
        return
    with executor.math(math), torch.no_grad():
        planned = executor.choose(math, H, B)
        layer = prepare(executor, math, H, B)
        expected = _expected(executor, layer, back)
        for choice, planner in _selected(executor, math, H, B, back, lean, planned[back]):
            if (choice.kernel, math, back) in executor.timed_out:
                continue
            if executor.out_of_time():
                executor.left_out += 1
                continue
            pair = (planned[0], choice) if back else (choice, planned[1])
            row, out = _timed(executor, LaunchPlan(*pair, math == "tf32"), layer, back)
            off = relative_difference(out, expected)
            wrong = bool(row["status"]) or not off <= ALLOWED[math]
            if row["status"]:
                executor.timed_out.add((choice.kernel, math, back))
            columns = {"math": math, "H": H, "B": B, "backward": back, "planner": planner, "off": off, "wrong": wrong}
            columns["beside"] = "definition"
            yield {**columns, **row, **choice_columns(choice)}


def _selected(
    executor: GpuExecutor, math: str, H: int, B: int, back: bool, lean: bool, planned: Any
) -> list[tuple[Any, bool]]:
    """The planner's pick, the cheapest by the cost model, and some of all the others, each with whether it is the pick.

    lean: tilings of `lean` alone, else of the other kernels.
    """
    fits = [c for c in executor.tilings(math, H, B, back) if (c.kernel == "lean") == lean]
    best, most = (2, 3) if executor.rehearsal else (MOST_LEAN if lean else BEST, MOST_LEAN if lean else MOST)
    others, rest = fits[best:], most - best
    chosen = fits[:best] + (others[:: max(1, len(others) // rest)][:rest] if rest else [])
    planned_tiling = choice_columns(planned)["tiling"]
    chosen = [c for c in chosen if (c.kernel, choice_columns(c)["tiling"]) != (planned.kernel, planned_tiling)]
    is_here = planned.kernel != "per_step" and (planned.kernel == "lean") == lean
    return [*([(planned, True)] if is_here else []), *((c, False) for c in chosen)]


def prepare(executor: GpuExecutor, math: str, H: int, B: int) -> LayerTensors:
    """A layer of the long length whose input side is almost nothing, with what `per_step` or the planner's kernel saved."""
    torch.manual_seed(0)
    T, math_dtype, spread = 4 if executor.rehearsal else LONG, dtype(math), H**-0.5

    def new(*shape: int, to: torch.dtype = math_dtype) -> torch.Tensor:
        return (torch.rand(*shape, device=executor.device) * 2 - 1).to(to)

    state_dtype = torch.float32
    x, w_x, bias, w_hh = new(T, B, 16), new(4 * H, 16), new(4 * H), new(4 * H, H) * spread
    inputs = (x, None, w_x, bias, w_hh, None, new(B, H), new(B, H, to=state_dtype), None, None, None)
    h, c = new(T, B, H) * 0.5, new(T, B, H, to=state_dtype)
    gates = torch.rand(T, B, 4 * H, device=executor.device).to(
        math_dtype
    )  # any will do: the time does not depend on them
    return LayerTensors(inputs, new(T, B, H), (h, c, gates))


def _lengths(executor: GpuExecutor) -> tuple[int, int]:
    return (2, 4) if executor.rehearsal else (SHORT, LONG)


def _expected(executor: GpuExecutor, layer: LayerTensors, back: bool) -> list[torch.Tensor]:
    """What the definition gives for the short length, in the same type: no kernel is judged by another."""
    inputs, grads, saved = layer.of(_lengths(executor)[0])
    out = reference.backward(*grads, *inputs, False, 1, *saved) if back else reference.forward(*inputs, False, 1)
    return [value for value in out if value.numel()]


def _timed(executor: GpuExecutor, plan: LaunchPlan, layer: LayerTensors, back: bool) -> tuple[dict, list[torch.Tensor]]:
    """Times and status of one tiling, and its results of the short length."""
    short, long = _lengths(executor)
    kept: list[torch.Tensor] = []

    def call(T: int) -> None:
        inputs, grads, saved = layer.of(T)
        out = executor.backward(plan, grads, inputs, saved) if back else executor.forward(plan, inputs)
        kept[:] = [value for value in out if value.numel()]

    def launch(T: int, times: int) -> float:
        return statistics.median(executor.launch_seconds(lambda: call(T), times))

    call(short)
    row = {"status": executor.take_status(), "us": None, "fixed_us": None}
    out = list(kept)
    if row["status"]:
        return row, out
    probe = launch(short, 1)
    if probe > SLOW and not executor.rehearsal:
        return {**row, "us": probe * 1e6 / short, "fixed_us": 0.0, "slow": True, "repeats": 1}, out
    times = 1 if probe > FEW or executor.rehearsal else 5
    few, many = launch(short, times), launch(long, times)
    us = (many - few) / (long - short) * 1e6
    row |= {"us": us, "fixed_us": few * 1e6 - short * us, "repeats": times, "seconds": {short: few, long: many}}
    return {**row, "status": executor.take_status()}, out
