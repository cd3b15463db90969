"""raw.jsonl: one JSON object a line, each written at once and whole, so that nothing is lost with the process."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any


class Rows:
    """Appends rows to FOLDER/raw.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "raw.jsonl"

    def add(self, stage: str, /, **what: Any) -> None:
        line = json.dumps({"t": round(time.time(), 3), **_plain(what), "stage": stage}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def read(path: Path) -> list[dict]:
    """All rows of a file; a line that was cut off is left out."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: numbers with six digits, NaN and infinities as words."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return str(value)
