"""Clocks: calls timed by events, in turns, eager and replayed from a CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from benchmarks.gpu_day.executor import GpuExecutor

TimedCall = Callable[[], Any]
TARGET = 6e-3  # seconds of a sample
ROUNDS = 5
MOST = 100  # calls in a sample


def elapsed(executor: GpuExecutor, run: TimedCall, times: int = 1) -> float:
    """Seconds of one of `times` calls, by events around them all."""
    begin, end = executor.event(), executor.event()
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / times


def seconds(executor: GpuExecutor, run: TimedCall, rounds: int = ROUNDS, target: float = TARGET) -> float:
    """Median seconds of a call, after two outside."""
    return in_turns(executor, {"": run}, rounds, target)[0][""]


def in_turns(
    executor: GpuExecutor, runs: dict[str, TimedCall], rounds: int = ROUNDS, target: float = TARGET
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each, one sample of each after the other; the second dict says how often, or why not.

    A call that raises is left out with its error; a ruined GPU raises.
    """
    calls, notes = {}, {}
    for name, run in runs.items():
        try:
            run()
            executor.sync()
            calls[name] = (
                1 if executor.rehearsal else max(1, min(MOST, int(target / max(elapsed(executor, run), 1e-6))))
            )
        except Exception as error:
            notes[name] = error_text(error)
            if not executor.alive():
                raise
    rounds = 1 if executor.rehearsal else rounds
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, repeats in calls.items():
            samples[name].append(elapsed(executor, runs[name], repeats))
    medians = {name: statistics.median(times) for name, times in samples.items()}
    notes |= {name: f"{rounds} x {repeats}, {_spread(samples[name], medians[name])}" for name, repeats in calls.items()}
    return medians, notes


def _spread(samples: list[float], median: float) -> str:
    """From the fastest sample to the slowest, as shares of the median."""
    return f"{min(samples) / median:.2f} to {max(samples) / median:.2f}"


def error_text(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


def captured(
    executor: GpuExecutor, run: TimedCall, graph: torch.cuda.CUDAGraph | None = None
) -> tuple[TimedCall, list]:
    """The call as a CUDA graph: what replays it, and the tensors that a replay fills. Three calls outside come first.

    torch.cuda.graph would empty the allocator's cache each time, which costs more than the capture. No autograd graph of an
    earlier call may be alive: its leaves belong to the stream of that call.
    """
    if executor.rehearsal:
        outputs = [tensor.detach() for tensor in run()]
        return (lambda: [a.copy_(b.detach()) for a, b in zip(outputs, run(), strict=True)]), outputs
    side, graph = torch.cuda.Stream(), graph or torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            outputs = [tensor.detach() for tensor in run()]
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            executor.recover_capture(graph)
            raise
        try:
            graph.capture_end()
        except RuntimeError:
            executor.recover_capture(graph)
            raise
    torch.cuda.current_stream().wait_stream(side)
    return graph.replay, outputs


def replays(executor: GpuExecutor, runs: dict[str, TimedCall]) -> tuple[dict[str, TimedCall], dict[str, str]]:
    """Replays of those that can be captured, and why the others cannot."""
    captured_calls, errors = {}, {}
    for name, run in runs.items():
        try:
            captured_calls[name] = captured(executor, run)[0]
        except Exception as error:
            errors[name] = error_text(error)
            if not executor.alive():
                raise
    return captured_calls, errors
