"""A training step of a layer in parts: input product, both recurrences, products for input and weights; us of a step."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import GpuExecutor, choice_columns, dtype
from fastlstm.backends.cuda.launch import LaunchPlan
from fastlstm.backends.device import products_as_cudnn

T = 256
SIZES = ((1024, 16), (512, 64), (256, 64), (1024, 64), (768, 16))


def items(executor: GpuExecutor) -> list[Item]:
    executor.start()
    sizes = ((16, 2),) if executor.rehearsal else SIZES
    return [Item(f"{math} H{H} B{B}", (math, H, B)) for math in ("bf16", "tf32") for H, B in sizes]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    math, H, B = item.values
    steps = 4 if executor.rehearsal else T
    with executor.math(math), torch.no_grad(), products_as_cudnn(dtype(math)):

        def new(*shape: int) -> torch.Tensor:
            return (torch.rand(*shape, device=executor.device) * 2 - 1).to(dtype(math))

        x, w_x, bias, w_hh = new(steps, B, H), new(4 * H, H) / H**0.5, new(4 * H), new(4 * H, H) / H**0.5
        inputs = (x, None, w_x, bias, w_hh, None, new(B, H), torch.rand(B, H, device=executor.device), None, None, None)
        plan = LaunchPlan(*executor.choose(math, H, B), math == "tf32")
        grads = (new(steps, B, H), None, None, None)
        h, c, gates, _, _ = executor.forward(plan, inputs)
        d_gates = executor.backward(plan, grads, inputs, (h, c, gates))[0].view(steps * B, 4 * H)
        rows, before = x.view(steps * B, H), h.view(steps * B, H)
        parts = {
            "input": lambda: torch.addmm(bias, rows, w_x.t()),
            "forward": lambda: executor.forward(plan, inputs),
            "backward": lambda: executor.backward(plan, grads, inputs, (h, c, gates)),
            "dx": lambda: d_gates @ w_x,
            "dw_x": lambda: d_gates.t() @ rows,
            "dw_hh": lambda: d_gates.t() @ before,
            "dbias": lambda: d_gates.sum(0),
        }
        seconds, repeats = measure.in_turns(executor, parts)
        us: dict[str, float | None] = {name: total / steps * 1e6 for name, total in seconds.items()}
        for name, choice in (("forward", plan.forward), ("backward", plan.backward)):
            us[f"{name}_kernel"] = _alone(executor, parts[name], choice.kernel, steps)
        plans = {"forward_plan": choice_columns(plan.forward), "backward_plan": choice_columns(plan.backward)}
        yield {
            "math": math,
            "H": H,
            "B": B,
            "T": steps,
            "us": us,
            "repeats": repeats,
            "status": executor.take_status(),
            **plans,
        }


def _alone(executor: GpuExecutor, call: measure.TimedCall, kernel: str, steps: int) -> float | None:
    """Median of the recurrent launch of a call, in us of a step; None for `per_step`, which has many and other calls between."""
    if kernel == "per_step":
        return None
    return statistics.median(executor.launch_seconds(call, 1 if executor.rehearsal else 5)) / steps * 1e6
