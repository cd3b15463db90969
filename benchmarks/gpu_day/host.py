"""What the host spends on an eager call: microseconds of a loop of calls that never waits, and functions by their time."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import fastlstm
from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.layers import GridPoint, call_of, input_of, ours, theirs
from benchmarks.gpu_day.place import Place

CELL = GridPoint("dense", "bf16", 1, 256, 16, 4)  # so short that the GPU is always done first
CALLS, ROUNDS, TOP = 200, 5, 40
MODES = (
    "inference",
    "training",
    "training in one thread",
)  # the last without autograd's own thread, which no profile sees


def items(place: Place) -> list[Item]:
    place.start()
    timed = [Item(f"{name} {mode}", (_timed, name, mode)) for mode in MODES for name in ("cuda", "torch")]
    profiled = [Item(f"profile of {mode}", (_profiled, "cuda", mode)) for mode in (MODES[0], MODES[2])]
    counted = [
        Item(f"launches of {name} {mode}", (_counted, name, mode)) for mode in MODES[:2] for name in ("cuda", "torch")
    ]
    return [*timed, *profiled, *counted]


def run(place: Place, item: Item) -> Iterator[dict]:
    what, name, mode = item.values
    cell = CELL._replace(H=16, B=2) if place.rehearsal else CELL
    threads = torch.autograd.set_multithreading_enabled(False) if mode == MODES[2] else nullcontext()
    with place.math(cell.math), fastlstm.backend(place.backend), threads:
        torch.manual_seed(0)
        kind = mode.split()[0]
        module = theirs(cell, place)
        module = ours(module, cell, place) if name == "cuda" else module
        call = call_of(module, input_of(cell, place, kind == "training"), kind)
        call()
        about = {**cell.columns, "library": name, "mode": mode}
        about["plan"] = fastlstm.dispatch.last_plan()[:80] if name == "cuda" else ""
        for row in what(place, call):
            yield {**about, **row, "status": place.taken()}


def _timed(place: Place, call: measure.Run) -> Iterator[dict]:
    """host_us: of a call as the host sees it; done_us: with the wait for the GPU at the end of all calls."""
    calls = _calls(place)
    _often(call, calls // 10 + 1)
    place.sync()
    found = []
    for _ in range(1 if place.rehearsal else ROUNDS):
        begin = time.perf_counter()
        _often(call, calls)
        issued = time.perf_counter()
        place.sync()
        found.append((issued - begin, time.perf_counter() - begin))
    host, done = (statistics.median(times) / calls * 1e6 for times in zip(*found, strict=True))
    yield {"host_us": host, "done_us": done, "repeats": f"{len(found)} x {calls}"}


def _profiled(place: Place, call: measure.Run) -> Iterator[dict]:
    """The functions with most time of their own, in microseconds of a call; a profile makes all of them slower."""
    calls = _calls(place)
    profile = cProfile.Profile()
    profile.runcall(_often, call, calls)
    place.sync()
    yield from functions(pstats.Stats(profile), calls)


def functions(stats: pstats.Stats, calls: int) -> Iterator[dict]:
    found = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:TOP]
    for (file, line, function), (_, times, own, cumulative, _) in found:
        where = function if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {function}"
        us = {"own_us": own / calls * 1e6, "cumulative_us": cumulative / calls * 1e6}
        yield {"name": where[:120], "ncalls": times / calls, **us}


def _counted(place: Place, call: measure.Run) -> Iterator[dict]:
    """What a call runs on the device, by name: kernels, copies and fills. In a rehearsal: torch's operations."""
    with torch.profiler.profile() as profile:
        call()
        place.sync()
    kind = torch.autograd.DeviceType.CPU if place.rehearsal else torch.autograd.DeviceType.CUDA
    names = Counter(event.name[:80] for event in profile.events() if event.device_type == kind)
    yield {"launches": names.total(), "names": dict(names.most_common(30))}


def _calls(place: Place) -> int:
    return 3 if place.rehearsal else CALLS


def _often(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()
