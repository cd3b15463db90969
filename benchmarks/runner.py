"""Runs one case: build, check, time. The suite and the table of targets call `run_case`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import competitors, schema
from benchmarks.machine import finish, gemm_rate, torch_threads_for
from benchmarks.schema import Row
from benchmarks.suite import BenchmarkCase
from benchmarks.timing import Interleaved, take_turns, undisturbed, wait_for_rest

Drive = Callable[[Interleaved, int], None]


def run_case(case: BenchmarkCase, seconds: float, drive: Drive = take_turns) -> list[Row]:
    """Return the rows of a case, timed for about `seconds` but at least three rounds.

    Args:
        case: the case.
        seconds: time for the rounds.
        drive: runs the rounds and leaves the seconds of every contender in `Interleaved.times`.

    Raises:
        WrongOutputError: an output is wrong; nothing was timed.
        ImportError: this fastlstm lacks the function.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads or before)
    try:
        workload = case.build()
        workload.check()
        first = next(name for name in workload.runs if name != workload.reference)
        device = workload.prepared.call.device if workload.prepared else "cpu"
        turns = Interleaved(
            workload.runs, first, workload.context, lambda: finish(device), settle=_settle, warm=bool(workload.optional)
        )
        with undisturbed():
            drive(turns, turns.rounds_for(seconds))
        gemm = gemm_rate(torch.get_num_threads(), device, workload.dtype)
        return schema.of_times(case, workload, turns.times, turns.calls, gemm)
    finally:
        torch.set_num_threads(before)


def _settle(name: str) -> None:
    """After a competitor with its own thread pool: wait until the pool sleeps, then run torch's threads for 50 ms.

    Without the second step the next parallel call takes 30 ms, because its two threads share a core at first.
    """
    if name in competitors.OWN_THREADS:
        wait_for_rest()
        torch_threads_for(0.05)
