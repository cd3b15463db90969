"""Clocks: calls timed by events, in turns, eager and replayed from a CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from benchmarks.gpu_day.place import Place

Run = Callable[[], Any]
TARGET = 6e-3  # seconds of a sample
ROUNDS = 5
MOST = 100  # calls in a sample


def elapsed(place: Place, run: Run, times: int = 1) -> float:
    """Seconds of one of `times` calls, by events around them all."""
    begin, end = place.event(), place.event()
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / times


def seconds(place: Place, run: Run, rounds: int = ROUNDS, target: float = TARGET) -> float:
    """Median seconds of a call, after two outside."""
    return in_turns(place, {"": run}, rounds, target)[0][""]


def in_turns(
    place: Place, runs: dict[str, Run], rounds: int = ROUNDS, target: float = TARGET
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each, one sample of each after the other; the second dict says how often, or why not.

    A call that raises is left out with its error; a ruined GPU raises.
    """
    calls, about = {}, {}
    for name, run in runs.items():
        try:
            run()
            place.sync()
            calls[name] = 1 if place.rehearsal else max(1, min(MOST, int(target / max(elapsed(place, run), 1e-6))))
        except Exception as error:
            about[name] = said(error)
            if not place.alive():
                raise
    rounds = 1 if place.rehearsal else rounds
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, times in calls.items():
            samples[name].append(elapsed(place, runs[name], times))
    medians = {name: statistics.median(found) for name, found in samples.items()}
    about |= {name: f"{rounds} x {times}, {_spread(samples[name], medians[name])}" for name, times in calls.items()}
    return medians, about


def _spread(samples: list[float], median: float) -> str:
    """From the fastest sample to the slowest, as shares of the median."""
    return f"{min(samples) / median:.2f} to {max(samples) / median:.2f}"


def said(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


def captured(place: Place, run: Run, graph: torch.cuda.CUDAGraph | None = None) -> tuple[Run, list]:
    """The call as a CUDA graph: what replays it, and the tensors that a replay fills. Three calls outside come first.

    torch.cuda.graph would empty the allocator's cache each time, which costs more than the capture. No autograd graph of an
    earlier call may be alive: its leaves belong to the stream of that call.
    """
    if place.rehearsal:
        kept = [tensor.detach() for tensor in run()]
        return (lambda: [a.copy_(b.detach()) for a, b in zip(kept, run(), strict=True)]), kept
    side, graph = torch.cuda.Stream(), graph or torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            kept = [tensor.detach() for tensor in run()]
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            place.mend(graph)
            raise
        try:
            graph.capture_end()
        except RuntimeError:
            place.mend(graph)
            raise
    torch.cuda.current_stream().wait_stream(side)
    return graph.replay, kept


def replays(place: Place, runs: dict[str, Run]) -> tuple[dict[str, Run], dict[str, str]]:
    """Replays of those that can be captured, and why the others cannot."""
    found, errors = {}, {}
    for name, run in runs.items():
        try:
            found[name] = captured(place, run)[0]
        except Exception as error:
            errors[name] = said(error)
            if not place.alive():
                raise
    return found, errors
