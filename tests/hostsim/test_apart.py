"""What goes wrong in a process apart is told, and no more."""

import operator
import os
import time

import pytest

from tests.hostsim.apart import apart


def test_the_functions_result_comes_back():
    assert apart(60, operator.add, 2, 3) == 5


def test_a_process_that_dies_or_takes_too_long_is_an_error():
    with pytest.raises(RuntimeError, match="died with exit code 3"):
        apart(60, os._exit, 3)
    with pytest.raises(RuntimeError, match="died with exit code 1"):
        apart(60, operator.truediv, 1, 0)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"took more than 0\.5 s"):
        apart(0.5, time.sleep, 60)
    assert time.monotonic() - started < 30
