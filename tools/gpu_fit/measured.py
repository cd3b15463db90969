"""Writes docs/gpu-measured.md: what was measured on GPUs, beside cuDNN by the algorithm that torch picks there.

Everything comes from the rows in benchmarks/results (committed.py); nothing is left out because we lose in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.workload import geometric_mean
from tools.gpu_fit import committed, correctness, others, plots, sweep
from tools.gpu_fit.constants import CostConstants
from tools.gpu_tables import markdown

PAGE = Path(__file__).parents[2] / "docs" / "gpu-measured.md"
PLOTS = PAGE.with_suffix("")
HEAD = """# Measured on GPUs

Written by `python -m tools.gpu_fit` from the rows of `python -m benchmarks.gpu_day` in `benchmarks/results/`. Times are
medians; module and characters are timed in turns with nn.LSTM in one process, with the same weights and checked results.
"""
STEPS = """### The recurrent kernels alone

Microseconds of a step, forward / backward: the planner's pick of that day, in brackets the fastest tiling measured.
"""
MODULE = """### fastlstm.LSTM beside nn.LSTM

A call of the module, T {T}: milliseconds ours / nn.LSTM and how many times as fast ours is, eager and replayed from a
CUDA graph. *algorithm*: what torch's rules have cuDNN run. Below 1.00 nn.LSTM is faster.
"""
CLASSES = """By algorithm of cuDNN: how many calls, times as fast as nn.LSTM (geometric mean, worst), and in how many we lose.
"""


def render() -> str:
    """The page, from all cards whose rows are kept."""
    parts = [HEAD]
    for card, rows in committed.files().items():
        parts += [
            f"## {card}\n",
            about(rows),
            *correctness.section(rows),
            *_pictures(card),
            *steps(rows),
            *module(rows),
        ]
        parts += others.sections(rows)
    return "\n".join(parts).rstrip() + "\n"


def write_page(cost: CostConstants = ()) -> None:
    """Write the page and its plots. cost: constants of the model that are not the built-in ones."""
    for card, rows in committed.files().items():
        PLOTS.mkdir(exist_ok=True)
        for name, draw in plots.DRAWN.items():
            draw(PLOTS / f"{_slug(card)}-{name}.svg", rows, cost)
    PAGE.write_text(render(), encoding="utf-8")


def _slug(card: str) -> str:
    return committed.path(card).name.removeprefix("gpu-").removesuffix("-raw.jsonl")


def _pictures(card: str) -> list[str]:
    paths = [PLOTS / f"{_slug(card)}-{name}.svg" for name in plots.DRAWN]
    return [f"![{path.stem}]({path.relative_to(PAGE.parent).as_posix()})\n" for path in paths if path.exists()]


def commits(rows: Sequence[dict]) -> str:
    """The commit that was measured; where stages are of different runs, the last and that of each earlier stage."""
    now, stage_commits = "", {}
    for row in rows:
        if row["stage"] == "env":
            now = row.get("commit") or now
        else:
            stage_commits[row["stage"]] = now
    earlier = {
        commit: [s for s, c in stage_commits.items() if c == commit]
        for commit in stage_commits.values()
        if commit != now
    }
    parts = [f"{', '.join(stages)} of an earlier run at {commit}" for commit, stages in earlier.items()]
    return f"{now} ({'; '.join(parts)})" if parts else now


def about(rows: Sequence[dict]) -> str:
    """Card, driver, versions, commit, date and clocks, in a line."""
    env: dict = {}
    for row in rows:
        if row["stage"] == "env":
            env |= {"busy": row["smi"]} if row.get("what") == "load" else row
    smi, words = env.get("smi") or {}, {}
    words["driver"] = smi.get("driver_version")
    words |= {name: env.get(name) for name in ("torch", "cuda", "cudnn", "triton")}
    words["commit"] = commits(rows)
    words["date"] = time.strftime("%Y-%m-%d", time.gmtime(rows[0]["t"]))
    words["SM clock under load"] = (env.get("busy") or {}).get("clocks.sm")
    words["power limit"] = smi.get("power.limit")
    line = ", ".join(f"{name} {value}" for name, value in words.items() if value)
    return f"{line}; {len(rows)} rows.\n"


def steps(rows: Sequence[dict]) -> list[str]:
    """Kernels alone: rows of types and hidden sizes, columns of batch sizes."""
    timed = sweep.steps(rows, sweep.device(rows))
    if not timed:
        return []
    batches, lines = sorted({step.B for step in timed}), []
    for math, H in sorted({(step.math, step.H) for step in timed}):
        cells = []
        for B in batches:
            of_size = [step for step in timed if (step.math, step.H, step.B) == (math, H, B)]
            both = [_planned([step for step in of_size if step.backward == back]) for back in (False, True)]
            cells.append(" / ".join(both) if of_size else "")
        lines.append((math, H, *cells))
    return [STEPS, markdown(("type", "H", *(f"B {B}" for B in batches)), lines)]


def _planned(tilings: Sequence[sweep.MeasuredStep]) -> str:
    pick = next((f"{step.us:.2f}" for step in tilings if step.planned), "-")
    return f"{pick} ({min(step.us for step in tilings):.2f})" if tilings else "-"


def module(rows: Sequence[dict]) -> list[str]:
    """The module beside nn.LSTM: by class of algorithm, then every call."""
    calls = committed.calls(rows)
    if not calls:
        return []
    lengths = " or ".join(str(T) for T in sorted({row["T"] for row in calls}))
    lines, key = [], ("math", "layout", "L", "H", "B", "training")
    for values in dict.fromkeys(tuple(row[name] for name in key) for row in calls):
        by_graph = {row["graph"]: row for row in calls if tuple(row[name] for name in key) == values}
        *what, training = values
        words = [_pair(by_graph.get(graph)) for graph in (False, True)]
        wrong = "wrong" if any(row.get("wrong") for row in by_graph.values()) else ""
        algorithm = next(iter(by_graph.values())).get("algorithm", "")
        lines.append((*what, "training" if training else "inference", *words, algorithm, wrong))
    head = ("type", "layout", "layers", "H", "B", "mode", "eager", "graph", "algorithm", "")
    return [MODULE.format(T=lengths), CLASSES, classes(calls), markdown(head, lines)]


def _pair(row: dict | None) -> str:
    if row is None:
        return ""
    return f"{1e3 * row['seconds']['cuda']:.3g} / {1e3 * row['seconds']['torch']:.3g} ({committed.ratio(row):.2f})"


def classes(calls: Iterable[dict]) -> str:
    """One line for every algorithm, mode and way of launching."""
    groups: dict[tuple, list[float]] = {}
    for row in calls:
        what = "training" if row["training"] else "inference", "graph" if row["graph"] else "eager"
        groups.setdefault((row.get("algorithm", ""), *what), []).append(committed.ratio(row))
    lines = [
        (*key, len(ratios), f"{geometric_mean(ratios):.2f}", f"{min(ratios):.2f}", sum(r < 1 for r in ratios))
        for key, ratios in sorted(groups.items())
    ]
    return markdown(("algorithm", "mode", "launched", "calls", "mean", "worst", "we lose"), lines)
