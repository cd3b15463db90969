"""Microbenchmarks of what the cost model guesses: a program built beforehand, whose JSON lines become rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.place import Place
from benchmarks.gpu_day.program import ROOT

PLACES = (ROOT / "ubench", ROOT / "build" / "ubench", ROOT / "build" / "gpu-day" / "ubench")
CANNED = (
    '{"gpu":"none","sms":132,"l2":52428800,"optin":232448}\n{"hand_over_clocks":812,"sm":[0,64]}\nnot a line of JSON\n'
)


def items(place: Place) -> list[Item]:
    return [Item("ubench")]


def program() -> list[str] | None:
    """The command that runs them: FASTLSTM_UBENCH, or where it is built."""
    given = os.environ.get("FASTLSTM_UBENCH")
    found = [Path(given)] if given else [path for path in PLACES if path.is_file()]
    if found and not os.access(found[0], os.X_OK):
        found[0].chmod(0o755)  # a copy may have lost it
    return [str(found[0])] if found else None


def run(place: Place, item: Item) -> Iterator[dict]:
    command = [sys.executable, "-c", f"print({CANNED!r})"] if place.rehearsal else program()
    if command is None:
        yield {"skipped": f"there is no ubench in {' or '.join(str(path.relative_to(ROOT)) for path in PLACES)}"}
        return
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        yield parsed(line)
    yield {"code": process.wait()}


def parsed(line: str) -> dict:
    """A line as columns; one that is not JSON as it came."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"said": line.strip()[:300]}
