"""Plots of results, as SVG: ratio by shape, share of the GEMM bound by shape, scaling curves. Equal rows give equal files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.schema import Row
from benchmarks.speed import as_used

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a")
Draw = Callable[[Path, Sequence[Row]], bool]


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write every plot for which there are rows; return the paths."""
    drawn: dict[str, Draw] = {"ratios.svg": ratios, "gemm.svg": gemm_share, "scaling.svg": scaling}
    return [folder / name for name, draw in drawn.items() if draw(folder / name, rows)]


def ratios(path: Path, rows: Sequence[Row]) -> bool:
    """Ratio to nn.LSTM: training step and forward over H and B, then every other case. Returns False without rows."""
    fast = as_used(_timed(rows))
    grid = [row for row in fast if row.group.removesuffix("-b1") in ("training", "forward")]
    rest = [row for row in fast if row not in grid and not row.group.startswith(("scaling", "gpu"))]
    if not grid and not rest:
        return False
    names = list(dict.fromkeys(row.case for row in rest))
    height = max(3.4, 0.3 * len(names) + 0.9)
    figure, axes = _figure(3, (13, height), {"width_ratios": (1, 1, 1.15)})
    for axis, mode in zip(axes, ("training", "forward"), strict=False):
        chosen = [row for row in grid if row.group.removesuffix("-b1") == mode]
        _by_shape(axis, chosen, lambda row: row.ratio, {"dispatched": "-"})
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=f"{_title(mode)}, T 64, I = H", xlabel="H", ylabel="times as fast as nn.LSTM")
    _bars(axes[2], rest, names)
    _save(figure, path)
    return True


def _title(mode: str) -> str:
    return {"training": "training step", "forward": "forward, no_grad"}[mode]


def _bars(axis, rows: Sequence[Row], names: Sequence[str]) -> None:
    values = {row.case: row.ratio for row in rows}
    axis.barh(range(len(names)), [values[name] for name in names], 0.7, color=COLOURS[0])
    for position, name in enumerate(names):
        axis.text(values[name], position, f" {values[name]:.3g}", va="center", fontsize=7)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    least, most = (pick([1.0, *(row.ratio for row in rows)]) for pick in (min, max))
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if least / 1.3 <= tick <= 1.5 * most]
    axis.set(xscale="log", xlim=(least / 1.3, most * 1.5), xlabel="times as fast as nn.LSTM", title="other cases")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def gemm_share(path: Path, rows: Sequence[Row]) -> bool:
    """Share of a large GEMM's rate that fastlstm (line) and nn.LSTM (dashes) reach, over H and B."""
    rows = [row for row in _timed(rows) if row.contender in ("cpu", "torch") and row.of_gemm]
    rows = [row for row in rows if row.group.removesuffix("-b1") in ("training", "forward")]
    if not rows:
        return False
    figure, axes = _figure(2, (9, 3.6))
    for axis, mode in zip(axes, ("training", "forward"), strict=True):
        chosen = [row for row in rows if row.group.removesuffix("-b1") == mode]
        _by_shape(axis, chosen, lambda row: row.of_gemm, {"cpu": "-", "torch": "--"})
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=f"{_title(mode)}: line fastlstm, dashes nn.LSTM", xlabel="H", ylabel="share of a large GEMM")
    _save(figure, path)
    return True


def _by_shape(axis, rows: Sequence[Row], value: Callable[[Row], float], styles: dict[str, str]) -> None:
    """Draw a line over H for each batch size and contender."""
    for colour, B in zip(COLOURS, sorted({row.B for row in rows}), strict=False):
        for contender, style in styles.items():
            points = sorted((row.H, value(row)) for row in rows if row.B == B and row.contender == contender)
            label = f"B {B}" if style == "-" else None
            axis.plot(*zip(*points, strict=True), style, marker="o", markersize=3, color=colour, label=label)
    if rows:
        _powers(axis, [row.H for row in rows])
        axis.legend(fontsize=7)


def scaling(path: Path, rows: Sequence[Row]) -> bool:
    """Microseconds per row (T·B) of a training step, over T, B, H and threads, fastlstm and nn.LSTM."""
    rows = [row for row in _timed(rows) if row.group.startswith("scaling") and row.contender in ("cpu", "torch")]
    if not rows:
        return False
    figure, axes = _figure(4, (15, 3.4))
    for axis, what in zip(axes, ("T", "B", "H", "threads"), strict=True):
        chosen = [row for row in rows if row.group == f"scaling-{what}"]
        batches = sorted({row.B for row in chosen}) if what == "threads" else [None]
        for colour, B in zip(COLOURS, batches, strict=False):
            for contender, style in {"cpu": "-", "torch": "--"}.items():
                series = [row for row in chosen if row.contender == contender and B in (None, row.B)]
                points = sorted((getattr(row, what), row.p50 * 1e6 / (row.T * row.B)) for row in series)
                name = ("fastlstm" if contender == "cpu" else "nn.LSTM") + (f", B {B}" if B else "")
                if points:
                    axis.plot(*zip(*points, strict=True), style, marker="o", markersize=3, color=colour, label=name)
        axis.set(yscale="log", xlabel=what, ylabel="µs a row of a training step")
        if chosen:
            _powers(axis, [getattr(row, what) for row in chosen])
            axis.legend(fontsize=7)
    _save(figure, path)
    return True


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.unit == "s" and row.ratio is not None and row.group not in ("after",)]


def _powers(axis, values: Sequence[int]) -> None:
    """Make the x axis logarithmic, with a tick at every measured value."""
    ticks = sorted(set(values))
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def _figure(columns: int, size: tuple[float, float], spacing: dict | None = None):
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("plots are drawn with matplotlib, which is not installed: make venv") from error

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "fastlstm", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=size, layout="constrained", gridspec_kw=spacing)


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
