"""Work in a process of its own: results come back, a crash or a hang ends there."""

from __future__ import annotations

import os
import time

import pytest

from fastlstm.verify import isolate


def counts(n: int):
    yield from range(n)


def dies(n: int):
    yield n
    os._exit(7)


def hangs():
    yield 1
    time.sleep(600)


def raises():
    yield 1
    raise ValueError("no such kernel")


def received(work, *args, seconds: float = 60.0) -> list:
    got = []
    try:
        for value in isolate.stream(work, *args, seconds=seconds):
            got.append(value)
    except isolate.LostError as error:
        got.append((str(error), error.silent))
    return got


def test_results_come_back_in_order():
    assert received(counts, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("work", "args", "seconds", "end"),
    [
        (dies, (1,), 60.0, ("the process ended with code 7", False)),
        (hangs, (), 1.0, ("nothing came for 1 s; it was ended", True)),
        (raises, (), 60.0, ("ValueError: no such kernel", False)),
    ],
)
def test_what_came_before_the_end_is_kept(work, args, seconds, end):
    assert received(work, *args, seconds=seconds) == [1, end]
