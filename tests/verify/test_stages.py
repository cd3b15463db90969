"""Items in a process of their own: what is kept when it fails, which item the failure names, and how the rest goes on."""

from __future__ import annotations

import os
import time

import pytest

from fastlstm.verify import isolate
from fastlstm.verify.stages import DeadlineError, Limits, ProcessFailure, Started, run_in_processes

LIMITS = Limits(60.0, 120.0)


def doubles(items: tuple, *fatal: int):
    """Twice each; a fatal one ends the process, 99 never ends, 98 raises, 97 is the last that this process does."""
    for index, item in enumerate(items):
        yield Started(index, f"part {item}", (item,))
        if item in fatal:
            os._exit(7)
        if item == 98:
            raise ValueError("no such item")
        if item == 99:
            time.sleep(600)
        yield 2 * item
        if item == 97:
            return


def fails_before_the_first(items: tuple):
    yield from ()
    raise ValueError("no device")


def collected(work, items, *args, limits=LIMITS, **options) -> list:
    return list(run_in_processes(isolate.stream, work, items, lambda: args, limits, **options))


def test_a_crash_loses_only_the_item_it_happened_in():
    results = collected(doubles, (1, 2, 3, 4), 2)
    assert results == [2, ProcessFailure(2, "part 2", "the process ended with code 7", (2,)), 6, 8]


def test_an_exception_of_the_work_is_a_failure_of_its_item():
    assert collected(doubles, (1, 98, 3)) == [2, ProcessFailure(98, "part 98", "ValueError: no such item", (98,)), 6]


def test_a_hang_is_ended_after_the_timeout_and_the_other_items_are_done():
    results = collected(doubles, (99, 3), limits=Limits(2.0, 120.0))
    assert results == [ProcessFailure(99, "part 99", "nothing came for 2 s; it was ended", (99,), timed_out=True), 6]


def test_items_to_skip_are_not_tried_after_a_failure():
    results = collected(doubles, (2, 1, 4, 3), 2, 4, skip=lambda item: item % 2 == 0)
    assert results == [ProcessFailure(2, "part 2", "the process ended with code 7", (2,)), 2, 6]


def test_items_left_by_work_that_ends_early_go_to_a_fresh_process():
    assert collected(doubles, (1, 97, 3)) == [2, 194, 6]


def test_a_process_that_fails_before_its_first_item_is_not_tried_again():
    assert collected(fails_before_the_first, (1, 2)) == [ProcessFailure(None, "", "ValueError: no device")]


def test_at_the_deadline_the_stage_ends_without_a_failure():
    results = []
    with pytest.raises(DeadlineError):
        results.extend(run_in_processes(isolate.stream, doubles, (99, 1), lambda: (), Limits(60.0, 6.0)))
    assert results == []


def test_with_no_time_left_the_deadline_is_raised_at_once():
    with pytest.raises(DeadlineError):
        collected(doubles, (1,), limits=Limits(60.0, 0.0))


def test_each_process_gets_its_arguments_anew():
    fatal = iter([(1,), (), ()])
    results = list(run_in_processes(isolate.stream, doubles, (1, 2), lambda: next(fatal), LIMITS))
    assert results == [ProcessFailure(1, "part 1", "the process ended with code 7", (1,)), 4]
