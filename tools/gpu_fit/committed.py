"""The rows of benchmarks.gpu_day that are kept in the repository: benchmarks/results/gpu-CARD-raw.jsonl, one file a card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.gpu_day.row_file import read
from tools.gpu_fit import sweep

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"


def files() -> dict[str, list[dict]]:
    """Rows by card, as kept."""
    files_rows = (read(path) for path in sorted(FOLDER.glob("gpu-*-raw.jsonl")))
    return {sweep.device(rows).name: rows for rows in files_rows}


def path(card: str) -> Path:
    """Where the rows of a card are kept."""
    name = card.lower().removeprefix("nvidia").strip()
    return FOLDER / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name)}-raw.jsonl"


def by_card(sources: Iterable[Path]) -> dict[str, list[dict]]:
    """The rows of files, by card; a stage that several files have is that of the last.

    Raises ValueError for a rehearsal, which measured nothing.
    """
    runs: dict[str, list[list[dict]]] = {}
    for source in sources:
        rows = read(source)
        if any(row["stage"] == "env" and row.get("rehearsal") for row in rows):
            raise ValueError(f"{source} is of a rehearsal; give the rows of a GPU")
        runs.setdefault(sweep.device(rows).name, []).append(rows)
    return {card: merged(of) for card, of in runs.items()}


def merged(runs: Sequence[Sequence[dict]]) -> list[dict]:
    """The rows of runs in their order, each stage only from the last run that has it; all that tells of the machine."""
    kept: list[dict] = []
    for number, rows in enumerate(runs):
        later = {_part(row) for run in runs[number + 1 :] for row in run}
        kept += [row for row in rows if row["stage"] == "env" or _part(row) not in later]
    return kept


def _part(row: dict) -> tuple:
    """What a run measures again or not: a stage; of the sweep, which is two stages, a type; of stages' ends, each stage's."""
    more = {"sweep": row.get("math"), "stage": row.get("name")}
    return row["stage"], more.get(row["stage"])


def keep(rows_by_card: Mapping[str, Sequence[dict]]) -> list[Path]:
    """Write the rows of each card to its file, whole or not at all."""
    targets = []
    for card, rows in rows_by_card.items():
        target = path(card)
        part = target.with_suffix(".partial")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        part.replace(target)
        targets.append(target)
    return targets


def last(rows: Iterable[dict], stage: str, has: str, *by: str) -> list[dict]:
    """The rows of a stage that have a column; of several that agree in the columns `by`, the last."""
    by_key = {tuple(row.get(name) for name in by): row for row in rows if row["stage"] == stage and row.get(has)}
    return list(by_key.values())


def calls(rows: Iterable[dict]) -> list[dict]:
    """Rows of the module that have both times."""
    key = ("math", "layout", "L", "H", "B", "T", "training", "graph")
    return [row for row in last(rows, "module", "seconds", *key) if {"torch", "cuda"} <= row["seconds"].keys()]


def ratio(row: dict) -> float:
    """Times as fast as nn.LSTM."""
    return row["seconds"]["torch"] / row["seconds"]["cuda"]
