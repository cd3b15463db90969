"""Items in a process of their own: what a lost one leaves, who is named for it, and how it goes on."""

from __future__ import annotations

import os
import time

import pytest

from fastlstm.verify import isolate
from fastlstm.verify.stages import Limits, Lost, Started, TimeUpError, through

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


def never_starts(items: tuple):
    yield from ()
    raise ValueError("no device")


def collected(work, items, *args, limits=LIMITS, **options) -> list:
    return list(through(isolate.stream, work, items, lambda: args, limits, **options))


def test_a_lost_process_loses_one_item():
    found = collected(doubles, (1, 2, 3, 4), 2)
    assert found == [2, Lost(2, "part 2", "the process ended with code 7", (2,)), 6, 8]


def test_an_error_of_the_work_is_a_lost_item():
    assert collected(doubles, (1, 98, 3)) == [2, Lost(98, "part 98", "ValueError: no such item", (98,)), 6]


def test_a_hang_is_ended_and_the_rest_is_done():
    found = collected(doubles, (99, 3), limits=Limits(2.0, 120.0))
    assert found == [Lost(99, "part 99", "nothing came for 2 s; it was ended", (99,), silent=True), 6]


def test_what_is_to_be_skipped_is_not_tried_after_a_loss():
    found = collected(doubles, (2, 1, 4, 3), 2, 4, skip=lambda item: item % 2 == 0)
    assert found == [Lost(2, "part 2", "the process ended with code 7", (2,)), 2, 6]


def test_work_that_ends_early_goes_on_in_a_fresh_process():
    assert collected(doubles, (1, 97, 3)) == [2, 194, 6]


def test_a_process_that_does_not_begin_is_not_tried_again():
    assert collected(never_starts, (1, 2)) == [Lost(None, "", "ValueError: no device")]


def test_the_time_of_the_stage_ends_it_and_blames_nobody():
    found = []
    with pytest.raises(TimeUpError):
        found.extend(through(isolate.stream, doubles, (99, 1), lambda: (), Limits(60.0, 6.0)))
    assert found == []


def test_no_time_at_all():
    with pytest.raises(TimeUpError):
        collected(doubles, (1,), limits=Limits(60.0, 0.0))


def test_arguments_are_asked_for_anew():
    fatal = iter([(1,), (), ()])
    found = list(through(isolate.stream, doubles, (1, 2), lambda: next(fatal), LIMITS))
    assert found == [Lost(1, "part 1", "the process ended with code 7", (1,)), 4]
