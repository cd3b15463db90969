"""Goes through items in a process of their own, and on in a fresh one after a crash, a hang or a device fault.

The work says which item it begins, so a failure is that item's and everything that came before it is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastlstm.verify.isolate import DeadlineError, ProcessFailedError

Process = Callable[..., Iterator]  # isolate.stream or isolate.inline


@dataclass(frozen=True)
class Started:
    """The work begins item number `index` of those it was given, or a part of it; using: what that part runs."""

    index: int
    part: str = ""
    using: tuple = ()


@dataclass(frozen=True)
class ProcessFailure:
    """The process failed in this item (None: before the first) and part, which ran `using`.

    timed_out: nothing came from it for too long; else it ended by itself.
    """

    item: Any
    part: str
    reason: str
    using: tuple = ()
    timed_out: bool = False


@dataclass(frozen=True)
class Limits:
    """Seconds: without a result before a process is ended, and of the stage as a whole from its begin."""

    timeout: float
    total: float


def run_in_processes(
    process: Process,
    work: Callable[..., Iterator],
    items: tuple,
    args: Callable[[], tuple],
    limits: Limits,
    skip: Callable[[Any], bool] = lambda item: False,
) -> Iterator:
    """Yield what `work(items, *args())` yields, and a `ProcessFailure` for every process that failed.

    The work yields a `Started` before each item and part, and may end early: what is left goes to a fresh process.
    args: asked for each process; skip: which of what is left needs not be done any more. Raises DeadlineError when
    the stage's time is over.
    """
    deadline, remaining = time.monotonic() + limits.total, tuple(items)
    while remaining:
        started = None
        try:
            for value in process(work, remaining, *args(), seconds=limits.timeout, deadline=deadline):
                if isinstance(value, Started):
                    started = value
                else:
                    yield value
        except ProcessFailedError as error:
            if started is None:
                yield ProcessFailure(None, "", str(error), timed_out=error.timed_out)
            else:
                yield ProcessFailure(remaining[started.index], started.part, str(error), started.using, error.timed_out)
        if started is None:
            return
        remaining = tuple(item for item in remaining[started.index + 1 :] if not skip(item))


__all__ = ["DeadlineError", "Limits", "Process", "ProcessFailedError", "ProcessFailure", "Started", "run_in_processes"]
