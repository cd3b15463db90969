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
from benchmarks.gpu_day.executor import GpuExecutor
from benchmarks.gpu_day.layers import LayerConfig, call_of, input_of, make_lstm, make_torch_lstm

CONFIG = LayerConfig("dense", "bf16", 1, 256, 16, 4)  # so short that the GPU is always done first
CALLS, ROUNDS, TOP = 200, 5, 40
MODES = (
    "inference",
    "training",
    "training in one thread",
)  # the last without autograd's own thread, which no profile sees


def items(executor: GpuExecutor) -> list[Item]:
    executor.start()
    timed = [Item(f"{name} {mode}", (_timed, name, mode)) for mode in MODES for name in ("cuda", "torch")]
    profiled = [Item(f"profile of {mode}", (_profiled, "cuda", mode)) for mode in (MODES[0], MODES[2])]
    counted = [
        Item(f"launches of {name} {mode}", (_counted, name, mode)) for mode in MODES[:2] for name in ("cuda", "torch")
    ]
    return [*timed, *profiled, *counted]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    what, name, mode = item.values
    config = CONFIG._replace(H=16, B=2) if executor.rehearsal else CONFIG
    threads = torch.autograd.set_multithreading_enabled(False) if mode == MODES[2] else nullcontext()
    with executor.math(config.math), fastlstm.backend(executor.backend), threads:
        torch.manual_seed(0)
        call_mode = mode.split()[0]
        module = make_torch_lstm(config, executor)
        module = make_lstm(module, config, executor) if name == "cuda" else module
        call = call_of(module, input_of(config, executor, call_mode == "training"), call_mode)
        call()
        columns = {**config.columns, "library": name, "mode": mode}
        columns["plan"] = fastlstm.dispatch.last_plan()[:80] if name == "cuda" else ""
        for row in what(executor, call):
            yield {**columns, **row, "status": executor.take_status()}


def _timed(executor: GpuExecutor, call: measure.TimedCall) -> Iterator[dict]:
    """host_us: of a call as the host sees it; done_us: with the wait for the GPU at the end of all calls."""
    calls = _calls(executor)
    _repeat(call, calls // 10 + 1)
    executor.sync()
    times = []
    for _ in range(1 if executor.rehearsal else ROUNDS):
        begin = time.perf_counter()
        _repeat(call, calls)
        issued = time.perf_counter()
        executor.sync()
        times.append((issued - begin, time.perf_counter() - begin))
    host, done = (statistics.median(totals) / calls * 1e6 for totals in zip(*times, strict=True))
    yield {"host_us": host, "done_us": done, "repeats": f"{len(times)} x {calls}"}


def _profiled(executor: GpuExecutor, call: measure.TimedCall) -> Iterator[dict]:
    """The functions with most time of their own, in microseconds of a call; a profile makes all of them slower."""
    calls = _calls(executor)
    profile = cProfile.Profile()
    profile.runcall(_repeat, call, calls)
    executor.sync()
    yield from functions(pstats.Stats(profile), calls)


def functions(stats: pstats.Stats, calls: int) -> Iterator[dict]:
    entries = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:TOP]
    for (file, line, function), (_, times, own, cumulative, _) in entries:
        where = function if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {function}"
        us = {"own_us": own / calls * 1e6, "cumulative_us": cumulative / calls * 1e6}
        yield {"name": where[:120], "ncalls": times / calls, **us}


def _counted(executor: GpuExecutor, call: measure.TimedCall) -> Iterator[dict]:
    """What a call runs on the device, by name: kernels, copies and fills. In a rehearsal: torch's operations."""
    with torch.profiler.profile() as profile:
        call()
        executor.sync()
    device_type = torch.autograd.DeviceType.CPU if executor.rehearsal else torch.autograd.DeviceType.CUDA
    names = Counter(event.name[:80] for event in profile.events() if event.device_type == device_type)
    yield {"launches": names.total(), "names": dict(names.most_common(30))}


def _calls(executor: GpuExecutor) -> int:
    return 3 if executor.rehearsal else CALLS


def _repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()
