"""Sections of docs/gpu-measured.md besides kernels and module: nn.LSTM alone, a training step in parts, programs, clocks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tools.gpu_fit import kept
from tools.gpu_tables import markdown

CUDNN = """### nn.LSTM on cuDNN

Microseconds of a step (slope over T) in a CUDA graph, or eager where there is no graph: inference / training step.
"""
TRAIN = """### A training step of one layer in parts

Microseconds a time step; *kernel*: the recurrent launch alone.
"""
CHARACTERS = """### Character models

Training, characters a second: ours, nn.LSTM, and how many times as fast ours is.
"""
KERNELBENCH = """### KernelBench, level 3

Milliseconds: ours, nn.LSTM; *published*: the best that KernelBench's site names for an H100.
"""


def sections(rows: Sequence[dict]) -> list[str]:
    """All that the rows have something for."""
    return [*cudnn(rows), *train(rows), *characters(rows), *kernelbench(rows), *clocks(rows)]


def cudnn(rows: Sequence[dict]) -> list[str]:
    """nn.LSTM's own steps: a row for type, layout and hidden size, a column for every batch size."""
    found: dict[tuple, dict] = {}
    for row in kept.last(rows, "cudnn", "us", "math", "layout", "L", "H", "B", "mode", "graph"):
        key = row["math"], row["layout"], row["L"], row["H"], row["B"], row["mode"]
        if row["graph"] or key not in found:
            found[key] = row
    if not found:
        return []
    batches, lines = sorted({key[4] for key in found}), []
    for what in dict.fromkeys(key[:4] for key in found):
        cells = []
        for B in batches:
            mine = [found.get((*what, B, mode)) for mode in ("inference", "training")]
            cells.append(" / ".join(f"{row['us']:.2f}" if row else "-" for row in mine) if any(mine) else "")
        algorithms = dict.fromkeys(row.get("algorithm", "") for key, row in found.items() if key[:4] == what)
        lines.append((*what, *cells, ", ".join(algorithms)))
    return [CUDNN, markdown(("type", "layout", "layers", "H", *(f"B {B}" for B in batches), "algorithm"), lines)]


def train(rows: Sequence[dict]) -> list[str]:
    """Parts of a training step."""
    found = kept.last(rows, "train", "us", "math", "H", "B")
    if not found:
        return []
    parts = list(dict.fromkeys(name for row in found for name in row["us"]))
    lines = [(row["math"], row["H"], row["B"], *(_us(row["us"].get(p)) for p in parts)) for row in found]
    return [TRAIN, markdown(("type", "H", "B", *(part.replace("_", " ") for part in parts)), lines)]


def characters(rows: Sequence[dict]) -> list[str]:
    """Character models in training."""
    key = ("L", "H", "B", "T", "math", "autocast", "graph")
    found = kept.last(rows, "characters", "characters_per_second", *key)
    lines = []
    for row in found:
        rates = row["characters_per_second"]
        both = [f"{rates[name]:,.0f}" if name in rates else "-" for name in ("cuda", "torch")]
        times = f"{rates['cuda'] / rates['torch']:.2f}" if {"cuda", "torch"} <= rates.keys() else "-"
        how = [str(row[name]) for name in ("math", "autocast") if row.get(name)]
        lines.append((f"{row['L']} x {row['H']}", row["B"], row["T"], " ".join(how), _launched(row), *both, times))
    head = ("layers", "B", "T", "type", "launched", "ours", "nn.LSTM", "times as fast")
    return [CHARACTERS, markdown(head, lines)] if lines else []


def kernelbench(rows: Sequence[dict]) -> list[str]:
    """KernelBench's problems with LSTMs."""
    lines = []
    for row in kept.last(rows, "kernelbench", "ms", "problem", "math", "graph"):
        both = [f"{row['ms'][name]:.2f}" if name in row["ms"] else "-" for name in ("cuda", "torch")]
        wrong = "wrong" if row.get("wrong") else ""
        lines.append(
            (row["problem"], row.get("math", ""), _launched(row), *both, row.get("published_ms") or "-", wrong)
        )
    head = ("problem", "type", "launched", "ours", "nn.LSTM", "published", "")
    return [KERNELBENCH, markdown(head, lines)] if lines else []


def _launched(row: dict) -> str:
    return "graph" if row.get("graph") else "eager"


def clocks(rows: Sequence[dict]) -> list[str]:
    """Microbenchmarks as they came, a line each."""
    lines = []
    for row in rows:
        if row["stage"] == "ubench":
            lines.append(json.dumps({name: value for name, value in row.items() if name not in ("stage", "t", "item")}))
    return ["### Microbenchmarks\n", "```\n" + "\n".join(lines) + "\n```\n"] if lines else []


def _us(time: float | None) -> str:
    """Microseconds; nothing where a part was not there, such as the one kernel of `step`."""
    return "" if time is None else f"{time:.2f}"
