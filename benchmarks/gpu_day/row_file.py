"""raw.jsonl: one JSON object a line, each written at once and whole, so that nothing is lost with the process.

Recorded rows are never edited: where a kernel has another name today, `read` gives it that name.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

RENAMED = {"step": "per_step", "tile": "single_block", "persistent": "cooperative", "resident": "single_block"}
_NAMES_A_KERNEL = ("kernel", "kernels", "forced", "plan", "item", "lost")  # columns
_OLD_NAME = re.compile(rf"\b({'|'.join(RENAMED)})(?=$|: | \(|\.|_forward|_backward| (?:bf16|f16|tf32|f32)\b)")


class RowWriter:
    """Appends rows to FOLDER/raw.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "raw.jsonl"

    def add(self, stage: str, /, **what: Any) -> None:
        line = json.dumps({"t": round(time.time(), 3), **_json_value(what), "stage": stage}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def read(path: Path) -> list[dict]:
    """All rows of a file, kernels by today's names; a line that was cut off is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            rows.append(with_current_names(json.loads(line)))
        except ValueError:
            continue
    return rows


def with_current_names(row: dict) -> dict:
    """A recorded row with the kernel names of today in the columns that name kernels."""
    return {name: _renamed(value) if name in _NAMES_A_KERNEL else _nested(value) for name, value in row.items()}


def _nested(value: Any) -> Any:
    return with_current_names(value) if isinstance(value, dict) else value


def _renamed(value: Any) -> Any:
    """A column's value: a kernel's name, a list of them, or a text with one."""
    if isinstance(value, str):
        return _OLD_NAME.sub(lambda match: RENAMED[match[1]], value)
    return [_renamed(one) for one in value] if isinstance(value, list) else _nested(value)


def _json_value(value: Any) -> Any:
    """The value as JSON can hold it: numbers with six digits, NaN and infinities as words."""
    if isinstance(value, dict):
        return {str(k): _json_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return str(value)
