"""Microbenchmarks of what the cost model guesses: a program built beforehand, whose JSON lines become rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import GpuExecutor
from benchmarks.gpu_day.program import ROOT

PATHS = (ROOT / "ubench", ROOT / "build" / "ubench", ROOT / "build" / "gpu-day" / "ubench")
CANNED = (
    '{"gpu":"none","sms":132,"l2":52428800,"optin":232448}\n{"hand_over_clocks":812,"sm":[0,64]}\nnot a line of JSON\n'
)


def items(executor: GpuExecutor) -> list[Item]:
    return [Item("ubench")]


def program() -> list[str] | None:
    """The command that runs them: FASTLSTM_UBENCH, or where it is built."""
    requested = os.environ.get("FASTLSTM_UBENCH")
    paths = [Path(requested)] if requested else [path for path in PATHS if path.is_file()]
    if paths and not os.access(paths[0], os.X_OK):
        paths[0].chmod(0o755)  # a copy may have lost it
    return [str(paths[0])] if paths else None


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    command = [sys.executable, "-c", f"print({CANNED!r})"] if executor.rehearsal else program()
    if command is None:
        yield {"skipped": f"there is no ubench in {' or '.join(str(path.relative_to(ROOT)) for path in PATHS)}"}
        return
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout or ():
        yield parsed(line)
    yield {"code": process.wait()}


def parsed(line: str) -> dict:
    """A line as columns; one that is not JSON as it came."""
    try:
        columns = json.loads(line)
    except ValueError:
        columns = None
    return columns if isinstance(columns, dict) else {"said": line.strip()[:300]}
