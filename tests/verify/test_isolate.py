"""Work in a process of its own: results come back, a crash or a hang ends there."""

from __future__ import annotations

import os
import time

import pytest

from fastlstm.verify import isolate


def yields_range(n: int):
    yield from range(n)


def exits(n: int):
    yield n
    os._exit(7)


def hangs():
    yield 1
    time.sleep(600)


def raises():
    yield 1
    raise ValueError("no such kernel")


def received(work, *args, seconds: float = 60.0) -> list:
    values = []
    try:
        for value in isolate.stream(work, *args, seconds=seconds):
            values.append(value)
    except isolate.ProcessFailedError as error:
        values.append((str(error), error.timed_out))
    return values


def test_values_come_back_in_order():
    assert received(yields_range, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("work", "args", "seconds", "end"),
    [
        (exits, (1,), 60.0, ("the process ended with code 7", False)),
        (hangs, (), 1.0, ("nothing came for 1 s; it was ended", True)),
        (raises, (), 60.0, ("ValueError: no such kernel", False)),
    ],
)
def test_values_before_an_exit_a_hang_or_an_error_are_kept(work, args, seconds, end):
    assert received(work, *args, seconds=seconds) == [1, end]
