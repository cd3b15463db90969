"""Sections of docs/gpu-measured.md besides kernels and module: nn.LSTM alone, a training step in parts, programs, clocks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks.gpu_day.kernelbench import BASELINE, PUBLISHED
from benchmarks.gpu_day.layers import LayerConfig, cudnn_algorithm
from tools.gpu_fit import committed
from tools.gpu_tables import markdown

CUDNN = """### nn.LSTM on cuDNN

Microseconds of a step in a CUDA graph (slope over T): inference / training step. *eager*: there was no graph, and the time is
a whole call's over its {T} steps, the host's share of it included. *algorithm*: what torch's rules have cuDNN run, by B where
they differ; under autocast, of either half type, nn.LSTM is float16 there.
"""
TRAIN = """### A training step of one layer in parts

Microseconds a time step; *kernel*: the recurrent launch alone.
"""
CHARACTERS = """### Character models

Training, characters a second: ours, nn.LSTM, and how many times as fast ours is.
"""
KERNELBENCH = """### KernelBench, level 3

Milliseconds: ours, nn.LSTM; *on an H100*: what is published of these problems there; *nn.LSTM on an H100 PCIe*: the baseline
in KernelBench's repository (results/timing/H100_PCIe_LambdaLabs).
"""


def sections(rows: Sequence[dict]) -> list[str]:
    """All that the rows have something for."""
    return [*cudnn(rows), *train(rows), *characters(rows), *kernelbench(rows), *clocks(rows)]


def cudnn(rows: Sequence[dict]) -> list[str]:
    """nn.LSTM's own steps: a row for type, layout and hidden size, a column for every batch size."""
    by_key: dict[tuple, dict] = {}
    for row in committed.last(rows, "cudnn", "us", "math", "layout", "L", "H", "B", "mode", "graph"):
        key = row["math"], row["layout"], row["L"], row["H"], row["B"], row["mode"]
        if row["graph"] or key not in by_key:
            by_key[key] = row
    if not by_key:
        return []
    batches, lines = sorted({key[4] for key in by_key}), []
    for what in dict.fromkeys(key[:4] for key in by_key):
        cells = []
        for B in batches:
            modes = [by_key.get((*what, B, mode)) for mode in ("inference", "training")]
            cells.append(" / ".join(_step(row) for row in modes) if any(modes) else "")
        lines.append((*what, *cells, _algorithms(*what, [B for B, cell in zip(batches, cells, strict=True) if cell])))
    lengths = ", ".join(
        str(T) for T in sorted({row["T"] for row in by_key.values() if not row["graph"] and "T" in row})
    )
    return [
        CUDNN.format(T=lengths or "own"),
        markdown(("type", "layout", "layers", "H", *(f"B {B}" for B in batches), "algorithm"), lines),
    ]


def _step(row: dict | None) -> str:
    if row is None:
        return "-"
    return f"{row['us']:.2f}" if row["graph"] else f"{row.get('us_absolute') or row['us']:.2f} eager"


def _algorithms(math: str, layout: str, L: int, H: int, batches: Sequence[int]) -> str:
    """The algorithm, or algorithms with the batch sizes that have them."""
    by: dict[str, list[int]] = {}
    for B in batches:
        by.setdefault(cudnn_algorithm(LayerConfig(layout, math, L, H, B, 0), True), []).append(B)
    if len(by) == 1:
        return next(iter(by))
    return ", ".join(f"{name} (B {' '.join(map(str, of))})" for name, of in by.items())


def train(rows: Sequence[dict]) -> list[str]:
    """Parts of a training step."""
    timed = committed.last(rows, "train", "us", "math", "H", "B")
    if not timed:
        return []
    parts = list(dict.fromkeys(name for row in timed for name in row["us"]))
    lines = [(row["math"], row["H"], row["B"], *(_us(row["us"].get(p)) for p in parts)) for row in timed]
    return [TRAIN, markdown(("type", "H", "B", *(part.replace("_", " ") for part in parts)), lines)]


def characters(rows: Sequence[dict]) -> list[str]:
    """Character models in training."""
    key = ("L", "H", "B", "T", "math", "autocast", "graph")
    timed = committed.last(rows, "characters", "characters_per_second", *key)
    lines = []
    for row in timed:
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
    for row in committed.last(rows, "kernelbench", "ms", "problem", "math", "graph"):
        both = [f"{row['ms'][name]:.2f}" if name in row["ms"] else "-" for name in ("cuda", "torch")]
        wrong = "wrong" if row.get("wrong") else ""
        known = [table.get(row["problem"]) or "-" for table in (PUBLISHED, BASELINE)]
        lines.append((row["problem"], row.get("math", ""), _launched(row), *both, *known, wrong))
    head = ("problem", "type", "launched", "ours", "nn.LSTM", "on an H100", "nn.LSTM on an H100 PCIe", "")
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
    """Microseconds; nothing where a part was not there, such as the one kernel of `per_step`."""
    return "" if time is None else f"{time:.2f}"
