"""Plots of docs/gpu-measured.md as SVG: ratio to nn.LSTM by algorithm, steps over H, predicted over measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tools.gpu_fit import committed, sweep
from tools.gpu_fit.constants import CostConstants

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3")


def ratios(path: Path, rows: Sequence[dict], cost: CostConstants = ()) -> None:
    """Times as fast as nn.LSTM, every call a dot, by cuDNN's algorithm and how the call is launched."""
    calls = committed.calls(rows)
    groups: dict[str, list[float]] = {}
    for row in calls:
        how = "graph" if row["graph"] else "eager"
        groups.setdefault(f"{row.get('algorithm', '')}\n{how}", []).append(committed.ratio(row))
    if not groups:
        return
    figure, axis = _figure(1, (9, 4))
    for position, (name, values) in enumerate(sorted(groups.items())):
        jitter = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0]
        axis.plot(position + np.asarray(jitter), sorted(values), ".", color=COLOURS["graph" in name])
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(groups)), sorted(groups), fontsize=7)
    axis.set(yscale="log", ylabel="times as fast as nn.LSTM")
    _save(figure, path)


def steps(path: Path, rows: Sequence[dict], cost: CostConstants = ()) -> None:
    """Microseconds of a forward step over H: our fastest tiling, and nn.LSTM's inference, for two batch sizes."""
    tilings = [s for s in sweep.steps(rows, sweep.device(rows)) if s.math == "bf16" and not s.backward]
    if not tilings:
        return
    figure, axes = _figure(2, (11, 4))
    for axis, B in zip(axes, (16, 64), strict=True):
        best = {
            H: min(s.us for s in tilings if (s.H, s.B) == (H, B)) for H in sorted({s.H for s in tilings if s.B == B})
        }
        axis.plot(list(best), list(best.values()), "o-", color=COLOURS[0], label="ours, bf16, kernel alone")
        for colour, math in zip(COLOURS[1:], ("f16", "bf16", "tf32"), strict=True):
            torch_us = {
                row["H"]: row["us"]
                for row in committed.last(rows, "cudnn", "us", "math", "layout", "L", "H", "B", "mode", "graph")
                if (row["math"], row["layout"], row["L"], row["B"], row["mode"]) == (math, "dense", 1, B, "inference")
            }
            axis.plot(
                sorted(torch_us), [torch_us[H] for H in sorted(torch_us)], "s--", color=colour, label=f"nn.LSTM, {math}"
            )
        axis.set(title=f"B {B}", xlabel="H", ylabel="µs of a forward step", yscale="log")
        axis.legend(fontsize=7)
    _save(figure, path)


def model(path: Path, rows: Sequence[dict], cost: CostConstants = ()) -> None:
    """Predicted over measured microseconds of every tiling, by kernel and direction."""
    tilings = sweep.steps(rows, replace(sweep.device(rows), cost=cost))
    if not tilings:
        return
    figure, axis = _figure(1, (6, 5))
    for colour, key in zip(COLOURS, sorted({(s.kernel, s.backward) for s in tilings}), strict=False):
        of_kernel = [s for s in tilings if (s.kernel, s.backward) == key]
        label = f"{key[0]} {'backward' if key[1] else 'forward'}"
        axis.plot(
            [s.us for s in of_kernel], [s.choice.us for s in of_kernel], ".", color=colour, markersize=3, label=label
        )
    ends = [min(s.us for s in tilings), max(s.us for s in tilings)]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="measured µs of a step", ylabel="predicted")
    axis.legend(fontsize=7)
    _save(figure, path)


def _figure(columns: int, size: tuple[float, float]):
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fastlstm"
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=size, layout="constrained")


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


DRAWN: dict[str, Callable[[Path, Sequence[dict], CostConstants], None]] = {
    "ratios": ratios,
    "steps": steps,
    "model": model,
}
