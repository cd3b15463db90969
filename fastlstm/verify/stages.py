"""Goes through items in a process of their own, and on in a fresh one after a crash, a hang or a device fault.

The work says which item it begins, so what was lost has a name and everything that came before it is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastlstm.verify.isolate import LostError, TimeUpError

Process = Callable[..., Iterator]  # isolate.stream or isolate.here


@dataclass(frozen=True)
class Started:
    """The work begins item number `index` of those it was given, or a part of it; using: what that part runs."""

    index: int
    part: str = ""
    using: tuple = ()


@dataclass(frozen=True)
class Lost:
    """The process was lost with this item (None: before the first) and part, which ran `using`.

    silent: nothing came from it for too long; else it ended by itself.
    """

    item: Any
    part: str
    why: str
    using: tuple = ()
    silent: bool = False


@dataclass(frozen=True)
class Limits:
    """Seconds: of silence before a process is ended, and of the stage as a whole from its begin."""

    silence: float
    whole: float


def through(
    process: Process,
    work: Callable[..., Iterator],
    items: tuple,
    args: Callable[[], tuple],
    limits: Limits,
    skip: Callable[[Any], bool] = lambda item: False,
) -> Iterator:
    """Yield what `work(items, *args())` yields, and a `Lost` for every process that was lost.

    The work yields a `Started` before each item and part, and may end early: what is left goes to a fresh process.
    args: asked for each process; skip: which of what is left needs not be done any more. Raises TimeUpError when the
    stage's time is over.
    """
    until, left = time.monotonic() + limits.whole, tuple(items)
    while left:
        begun = None
        try:
            for found in process(work, left, *args(), seconds=limits.silence, until=until):
                if isinstance(found, Started):
                    begun = found
                else:
                    yield found
        except LostError as error:
            if begun is None:
                yield Lost(None, "", str(error), silent=error.silent)
            else:
                yield Lost(left[begun.index], begun.part, str(error), begun.using, error.silent)
        if begun is None:
            return
        left = tuple(item for item in left[begun.index + 1 :] if not skip(item))


__all__ = ["Limits", "Lost", "LostError", "Process", "Started", "TimeUpError", "through"]
