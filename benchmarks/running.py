"""One case from its tensors to its rows: build, check, time. The suite and the table of floors both go this way."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import peers, record
from benchmarks.machine import finish, gemm_rate, torch_threads_for
from benchmarks.record import Row
from benchmarks.suite import Timed
from benchmarks.timing import Interleaved, take_turns, undisturbed, wait_for_rest

Drive = Callable[[Interleaved, int], None]


def run(case: Timed, seconds: float, drive: Drive = take_turns) -> list[Row]:
    """Return the rows of a case, timed for about `seconds` but at least three rounds.

    drive: runs the rounds and leaves every contender's seconds in `times`. Raises WrongOutputError, before any timing,
    where an output is wrong; ImportError where this fastlstm lacks the function.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads or before)
    try:
        work = case.build()
        work.check()
        first = next(name for name in work.runs if name != work.judge)
        device = work.made.call.device if work.made else "cpu"
        turns = Interleaved(
            work.runs, first, work.inside, lambda: finish(device), settle=_settle, warm=bool(work.optional)
        )
        with undisturbed():
            drive(turns, turns.rounds_for(seconds))
        gemm = gemm_rate(torch.get_num_threads(), device, work.dtype)
        return record.of_times(case, work, turns.times, turns.calls, gemm)
    finally:
        torch.set_num_threads(before)


def _settle(name: str) -> None:
    """After a peer whose own threads spin on: wait for them, then let torch's threads find their cores again.

    Without the second step the next parallel call takes 30 ms, whoever makes it: its two threads share a core at first.
    """
    if name in peers.OWN_THREADS:
        wait_for_rest()
        torch_threads_for(0.05)
