"""Memory that runs out inside a native call, on whatever thread, is a MemoryError; the process goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm.backends import native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
HERE = Path(__file__).parent


def test_each_failing_allocation_is_a_memory_error(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C++ compiler on Linux")
    library = tmp_path / "failing_allocation.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "failing_allocation.cpp", "-ldl"], check=True
    )
    command = [sys.executable, "-m", "tests.backends.cpu.failing_calls"]
    done = subprocess.run(
        command,
        env=os.environ | {"LD_PRELOAD": str(library)},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = {
        line.split(":")[0]: tuple(map(int, re.findall(r"\d+", line.split(":")[1]))) for line in done.stdout.splitlines()
    }
    assert len(counts) == 13
    for name, (failed, count) in counts.items():
        assert failed > 0 or name == "pack", name  # which needs no memory of its own
        assert failed >= count // 2 or name == "small call", (name, failed, count)  # which goes another way instead
