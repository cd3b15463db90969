"""Runs a function in a process of its own: a crash, a hang or a ruined device context ends there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

START = 300.0  # seconds a process may take to import what it needs


class LostError(RuntimeError):
    """The process ended before its work, or took too long."""


def stream(work: Callable[..., Iterator[Any]], *args: Any, seconds: float) -> Iterator[Any]:
    """Yield what `work(*args)` yields, from a fresh process; raises LostError where it dies or is silent for `seconds`.

    work: a function of a module (it is sent by name); args and what it yields must pickle.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, args), daemon=True)
    process.start()
    theirs.close()
    try:
        yield from _receive(ours, process, seconds)
    finally:
        ours.close()
        process.kill()
        process.join()


def _receive(ours: Connection, process: multiprocessing.Process, seconds: float) -> Iterator[Any]:
    patience = START
    while True:
        try:
            if not ours.poll(patience):
                raise LostError(f"nothing came for {patience:.0f} s; it was ended")
            kind, value = ours.recv()
        except EOFError:
            process.join(10)
            raise LostError(f"the process ended with code {process.exitcode}") from None
        patience = seconds
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


def here(work: Callable[..., Iterator[Any]], *args: Any, seconds: float) -> Iterator[Any]:
    """The same in this process, without a limit: for tests and debuggers."""
    return work(*args)
