"""Runs a function in a process of its own: a crash, a hang or a ruined device context ends there."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

START = 300.0  # seconds a process may take to import what it needs


class LostError(RuntimeError):
    """The process ended before its work, or nothing came from it for too long (silent)."""

    def __init__(self, why: str, silent: bool = False):
        super().__init__(why)
        self.silent = silent


class TimeUpError(RuntimeError):
    """The time for the whole work is over; nothing went wrong."""


def stream(work: Callable[..., Iterator[Any]], *args: Any, seconds: float, until: float = math.inf) -> Iterator[Any]:
    """Yield what `work(*args)` yields, from a fresh process.

    work: a function of a module (it is sent by name); args and what it yields must pickle. Raises LostError where the
    process dies or is silent for `seconds`, TimeUpError at the time `until` (of time.monotonic); it is ended then.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, args), daemon=True)
    process.start()
    theirs.close()
    try:
        yield from _receive(ours, process, seconds, until)
    finally:
        ours.close()
        process.kill()
        process.join()


def _receive(ours: Connection, process: multiprocessing.Process, seconds: float, until: float) -> Iterator[Any]:
    timeout = START
    while True:
        left = until - time.monotonic()
        try:
            if left <= 0 or not ours.poll(min(timeout, left)):
                if left <= timeout:
                    raise TimeUpError("the time is over")
                raise LostError(f"nothing came for {timeout:.0f} s; it was ended", silent=True)
            kind, value = ours.recv()
        except EOFError:
            process.join(10)
            raise LostError(f"the process ended with code {process.exitcode}") from None
        timeout = seconds
        if kind == "end":
            return
        if kind == "error":
            raise LostError(value)
        if kind == "value":
            yield value


def _work(connection: Connection, work: Callable[..., Iterator[Any]], args: tuple) -> None:
    connection.send(("start", None))
    try:
        for value in work(*args):
            connection.send(("value", value))
        connection.send(("end", None))
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))
    finally:
        connection.close()


def here(work: Callable[..., Iterator[Any]], *args: Any, seconds: float, until: float = math.inf) -> Iterator[Any]:
    """The same in this process, without limits: for tests and debuggers."""
    return work(*args)
