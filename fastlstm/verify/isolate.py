"""Runs a function in a process of its own: a crash, a hang or a fatal device error ends there."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

START_SECONDS = 300.0  # that a process may take to import what it needs


class ProcessFailedError(RuntimeError):
    """The process ended before its work, or nothing came from it for too long (timed_out)."""

    def __init__(self, reason: str, timed_out: bool = False):
        super().__init__(reason)
        self.timed_out = timed_out


class DeadlineError(RuntimeError):
    """The time for the whole work is over; nothing went wrong."""


def stream(work: Callable[..., Iterator[Any]], *args: Any, seconds: float, deadline: float = math.inf) -> Iterator[Any]:
    """Yield what `work(*args)` yields, from a fresh process.

    work: a function of a module (it is sent by name); args and what it yields must pickle. Raises ProcessFailedError
    where the process ends early or nothing comes from it for `seconds`, DeadlineError at the time `deadline` (of
    time.monotonic); it is ended then.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, work, args), daemon=True)
    process.start()
    sender.close()
    try:
        yield from _receive(receiver, process, seconds, deadline)
    finally:
        receiver.close()
        process.kill()
        process.join()


def _receive(receiver: Connection, process: multiprocessing.Process, seconds: float, deadline: float) -> Iterator[Any]:
    timeout = START_SECONDS
    while True:
        remaining = deadline - time.monotonic()
        try:
            if remaining <= 0 or not receiver.poll(min(timeout, remaining)):
                if remaining <= timeout:
                    raise DeadlineError("the time is over")
                raise ProcessFailedError(f"nothing came for {timeout:.0f} s; it was ended", timed_out=True)
            tag, value = receiver.recv()
        except EOFError:
            process.join(10)
            raise ProcessFailedError(f"the process ended with code {process.exitcode}") from None
        timeout = seconds
        if tag == "end":
            return
        if tag == "error":
            raise ProcessFailedError(value)
        if tag == "value":
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


def inline(work: Callable[..., Iterator[Any]], *args: Any, seconds: float, deadline: float = math.inf) -> Iterator[Any]:
    """The same in this process, without limits: for tests and debuggers."""
    return work(*args)
