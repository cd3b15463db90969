"""The native module under AddressSanitizer and UBSan (tools/asan.py), with the kernels of one instruction set."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import asan

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_it_runs_is_there() -> None:
    for test in asan.TESTS:
        assert (ROOT / test).exists()


@pytest.mark.slow
def test_nothing_is_reported() -> None:
    if shutil.which("g++") is None or asan.runtimes() is None:
        pytest.skip("g++ has no libasan here")
    command = [sys.executable, ROOT / "tools" / "asan.py", "--baseline"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "no report of AddressSanitizer or UBSan" in done.stdout
