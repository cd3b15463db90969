"""A few of the random calls that `make fuzz` makes; each in its own process, since a fault would end this one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _fuzz(count: int, first: int) -> str:
    command = [sys.executable, "-m", "tests.fuzz.calls", str(count), str(first)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr.split("\r")[-1])[-3000:]
    return done.stdout


def test_random_calls_are_right_or_refused() -> None:
    happened = _fuzz(300, 10**6)
    assert int(re.search(r"'compared': (\d+)", happened)[1]) > 150
    assert int(re.search(r"'hostile, refused': (\d+)", happened)[1]) > 5


@pytest.mark.slow
def test_two_thousand_random_calls_are_right_or_refused() -> None:
    assert "2000 calls" in _fuzz(2000, 0)
