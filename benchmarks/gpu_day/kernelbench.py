"""KernelBench, level 3, problems 35 to 38: six layers of 256 over 512 steps in float32, forward, beside nn.LSTM."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import fastlstm
from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import ALLOWED, GpuExecutor
from benchmarks.gpu_day.layers import relative_difference

PUBLISHED = {35: 27.2, 36: None, 37: 28.0, 38: 54.1}  # ms, on an H100
# ms of nn.LSTM on an H100 PCIe: results/timing/H100_PCIe_LambdaLabs/baseline_time_torch.json of KernelBench
BASELINE = {35: 29.4, 36: 29.4, 37: 29.6, 38: 56.9}
B, T, I, H, L, OUT = 10, 512, 128, 256, 6, 10


class Problem(nn.Module):
    """Problem 35 returns scores of the last step, 36 the last h, 37 the last c, 38 scores of both directions."""

    def __init__(self, number: int, lstm: nn.Module, size: tuple[int, ...]) -> None:
        super().__init__()
        rows, _, _, hidden, layers = size
        directions = 2 if number == 38 else 1
        self.number, self.lstm = number, lstm
        self.fc = nn.Linear(hidden * directions, OUT)
        self.register_buffer("h0", torch.randn(layers * directions, rows, hidden))
        self.register_buffer("c0", torch.randn(layers * directions, rows, hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, state = self.lstm(x, (self.h0, self.c0))
        scores = self.fc(out[:, -1])
        return {36: state[0], 37: state[1]}.get(self.number, scores)


def items(executor: GpuExecutor) -> list[Item]:
    executor.start()
    maths = ("f32",) if executor.rehearsal else ("tf32", "f32")
    return [Item(f"problem {number} {math}", (number, math)) for math in maths for number in PUBLISHED]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    number, math = item.values
    size = (2, 3, 8, 8, 2) if executor.rehearsal else (B, T, I, H, L)
    rows, steps, width, hidden, layers = size
    torch.manual_seed(0)
    options = {"batch_first": True, "bidirectional": number == 38}
    with executor.math(math), torch.no_grad():
        forced = executor.avoid_failed_kernels(math, hidden, rows)
        torch_model = Problem(number, nn.LSTM(width, hidden, layers, **options), size)
        model = Problem(number, fastlstm.LSTM(width, hidden, layers, **options), size)
        model.load_state_dict(torch_model.state_dict())
        torch_model, model = torch_model.to(executor.device), model.to(executor.device)
        x = torch.randn(rows, steps, width, device=executor.device)

        def call() -> list[torch.Tensor]:
            with fastlstm.backend(executor.backend):
                return [model(x)]

        calls = {"torch": lambda: [torch_model(x)], "cuda": call}
        off, plan = relative_difference(calls["cuda"](), calls["torch"]()), fastlstm.dispatch.last_plan()
        if not plan.startswith(executor.backend):
            raise RuntimeError(f"{executor.backend} was asked for and this ran: {plan}")
        for graph in (False, True):
            errors: dict[str, str] = {}
            if graph:
                calls, errors = measure.replays(executor, calls)
            seconds, repeats = measure.in_turns(executor, calls)
            row = {"problem": number, "math": math, "graph": graph, "ms": {k: 1e3 * s for k, s in seconds.items()}}
            row |= {"published_ms": PUBLISHED[number], "repeats": repeats | errors, "off": off, "plan": plan[:120]}
            yield {**row, "wrong": not off <= 3 * ALLOWED[math], "forced": forced, "status": executor.take_status()}
