"""The rows of benchmarks.gpu_day that are kept in the repository: benchmarks/results/gpu-CARD-raw.jsonl, one file a card."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu_day.rows import read
from tools.gpu_fit import sweep

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"


def files() -> dict[str, list[dict]]:
    """Rows by card, as kept."""
    found = (read(path) for path in sorted(FOLDER.glob("gpu-*-raw.jsonl")))
    return {sweep.device(rows).name: rows for rows in found}


def path(card: str) -> Path:
    """Where the rows of a card are kept."""
    name = card.lower().removeprefix("nvidia").strip()
    return FOLDER / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name)}-raw.jsonl"


def keep(sources: Iterable[Path]) -> list[Path]:
    """Keep the rows of these files as they are; several of one card go into one file, in the order given.

    Raises ValueError for a rehearsal, which measured nothing.
    """
    texts: dict[Path, str] = {}
    for source in sources:
        rows = read(source)
        if any(row["stage"] == "env" and row.get("rehearsal") for row in rows):
            raise ValueError(f"{source} is of a rehearsal; give the rows of a GPU")
        target = path(sweep.device(rows).name)
        texts[target] = texts.get(target, "") + source.read_text(encoding="utf-8", errors="replace")
    for target, text in texts.items():
        target.write_text(text, encoding="utf-8")
    return list(texts)


def last(rows: Iterable[dict], stage: str, has: str, *by: str) -> list[dict]:
    """The rows of a stage that have a column; of several that agree in the columns `by`, the last."""
    found = {tuple(row.get(name) for name in by): row for row in rows if row["stage"] == stage and row.get(has)}
    return list(found.values())


def calls(rows: Iterable[dict]) -> list[dict]:
    """Rows of the module that have both times."""
    key = ("math", "layout", "L", "H", "B", "T", "training", "graph")
    return [row for row in last(rows, "module", "seconds", *key) if {"torch", "cuda"} <= row["seconds"].keys()]


def ratio(row: dict) -> float:
    """Times as fast as nn.LSTM."""
    return row["seconds"]["torch"] / row["seconds"]["cuda"]
