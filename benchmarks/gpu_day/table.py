"""The short table at the end, from raw.jsonl: what a person reads first, the most useful last.

It stays under 11,800 characters, so that all of it is in the last 12,000 of what a run prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.gpu_day.row_file import read

MOST = 11_800


def render(path: Path, begin: float = 0.0) -> str:
    """The table of what was written since then; sections that are too long for their room are cut at their ends."""
    rows, parts = [row for row in read(path) if row["t"] >= begin], []
    for section, length in SECTION_LENGTHS.items():
        text = "\n".join(section(rows))
        parts.append(text if len(text) <= length else text[:length].rsplit("\n", 1)[0] + "\n  … more in raw.jsonl")
    seconds = rows[-1]["t"] - rows[0]["t"] if rows else 0.0
    parts.append(f"{len(rows)} rows in {path.name}, {seconds:.0f} s in all")
    text = "\n".join(part for part in parts if part)
    return text if len(text) <= MOST else "…\n" + text[2 - MOST :].split("\n", 1)[1]


def _of(rows: Iterable[dict], stage: str) -> list[dict]:
    return [row for row in rows if row["stage"] == stage]


def stages(rows: list[dict]) -> Iterator[str]:
    yield "---- stages"
    for row in _of(rows, "stage"):
        more = "; ".join(f"{k} {row[k]}" for k in ("lost", "losses", "items", "left", "failed") if row.get(k))
        yield f"  {row['name']:<12} code {row['code']}, {row['seconds']} s {more}"
        if row["code"] not in (0, 1) and row.get("error"):
            yield "      " + row["error"].splitlines()[-1][:160]


def environment(rows: list[dict]) -> Iterator[str]:
    for row in _of(rows, "env"):
        words = {k: v for k, v in row.items() if k not in ("stage", "t", "trace")}
        yield ("  env " + " ".join(f"{k} {v}" for k, v in words.items()))[:240]


def correctness(rows: list[dict]) -> Iterator[str]:
    """One line where all is right, else a line for each kernel and type that is not."""
    checked = [row for row in _of(rows, "right") if "fine" in row]
    if not checked:
        return
    worst = max((r["worst"] for r in checked), key=_size)
    yield f"---- right: {sum(r['fine'] for r in checked)} of {len(checked)}, worst {float(worst):.2f} of what is allowed"
    for key in dict.fromkeys((r["kernel"], r["math"]) for r in checked if not r["fine"]):
        checks = [r for r in checked if (r["kernel"], r["math"]) == key]
        bad = sorted({f"{r['case']} {'backward' if r['backward'] else 'forward'}" for r in checks if not r["fine"]})
        largest = float(max((r["worst"] for r in checks), key=_size))
        words = f"WRONG {sum(not r['fine'] for r in checks)} of {len(checks)}, {largest:.2f}: {'; '.join(bad)[:150]}"
        yield f"  {key[0]:<12} {key[1]:<5} {words}"


def _size(worst: float | str) -> float:
    """NaN, a word in rows, counts as infinite."""
    return float(worst) if float(worst) == float(worst) else float("inf")


def module(rows: list[dict]) -> Iterator[str]:
    timed = [row for row in _of(rows, "module") if "seconds" in row]
    if not timed:
        return
    yield "---- module: ms (times as fast as nn.LSTM), eager then graph; inference | training; the kernel if not lean"
    for key in dict.fromkeys((r["math"], r["layout"], r["L"], r["H"], r["B"]) for r in timed):
        calls = [r for r in timed if (r["math"], r["layout"], r["L"], r["H"], r["B"]) == key]
        parts = [
            " ".join(_pair(r["seconds"], 1e3) for r in calls if r["training"] == training) for training in (False, True)
        ]
        bad = " WRONG" if any(r["wrong"] for r in calls) else ""
        kernels = {r["plan"].split(":")[1].strip() for r in calls if r["plan"].count(":") > 1} - {"lean"}
        layout = "" if key[1] == "dense" else f" {key[1][:8]}"
        yield f"  {key[0]} {key[2]}x{key[3]} B{key[4]}{layout}: {parts[0]} | {parts[1]} {' '.join(sorted(kernels))}{bad}".rstrip()


def _pair(seconds: dict, scale: float) -> str:
    """Our time and how many times as fast as torch that is."""
    if "cuda" not in seconds:
        return "-"
    time = scale * seconds["cuda"]
    return f"{time:.3g} ({seconds['torch'] / seconds['cuda']:.2f})" if "torch" in seconds else f"{time:.3g} (-)"


def cudnn(rows: list[dict]) -> Iterator[str]:
    timed = [row for row in _of(rows, "cudnn") if row.get("us") and row["graph"] and row["L"] == 1]
    if not timed:
        return
    yield "---- nn.LSTM in a graph: us a step, inference/training, by B"
    for key in dict.fromkeys((r["math"], r["layout"], r["H"]) for r in timed):
        calls = [r for r in timed if (r["math"], r["layout"], r["H"]) == key]
        by = {B: {r["mode"]: r for r in calls if r["B"] == B} for B in sorted({r["B"] for r in calls})}
        words = [f"B{B} " + "/".join(f"{r['us']:.2f}" for r in modes.values()) for B, modes in by.items()]
        yield f"  {key[0]:<13} H{key[2]:<5} {key[1]:<9.9} {'  '.join(words)}"


def sweep(rows: list[dict]) -> Iterator[str]:
    timed = [row for row in _of(rows, "sweep") if row.get("us")]
    if not timed:
        return
    yield "---- sweep: us a step of the planner's pick (predicted) < the best and its tiling; forward | backward"
    for key in dict.fromkeys((r["math"], r["H"], r["B"]) for r in timed):
        tilings = [r for r in timed if (r["math"], r["H"], r["B"]) == key]
        parts = [_picks([r for r in tilings if r["backward"] == back]) for back in (False, True)]
        yield f"  {key[0]} H{key[1]} B{key[2]}: {parts[0]} | {parts[1]}"


def _picks(tilings: list[dict]) -> str:
    """The planner's pick among the tilings of a cell, and the best where that is another."""
    if not tilings:
        return "-"
    planner = next((r for r in tilings if r["planner"]), None)
    correct = [r for r in tilings if not r["wrong"]]
    best = min(correct or tilings, key=lambda r: r["us"])
    words = f"{planner['us']:.3g} ({planner['predicted_us']:.3g})" if planner else "-"
    if best is not planner:
        tiling = "x".join(str(best["tiling"].get(k)) for k in ("groups", "k_splits", "row_tiles", "gate_splits"))
        words += f" < {best['us']:.3g} {best['kernel'][:4]} {tiling}"
    for kernel in ("lean", "cooperative"):
        of_kernel = [r["us"] for r in correct if r["kernel"] == kernel]
        if of_kernel and kernel not in (best["kernel"], planner and planner["kernel"]):
            words += f" [{kernel[:4]} {min(of_kernel):.3g}]"
    return words + (f" {len(tilings) - len(correct)} WRONG" if len(correct) < len(tilings) else "")


def train(rows: list[dict]) -> Iterator[str]:
    timed = [row for row in _of(rows, "train") if "us" in row]
    if timed:
        yield "---- train: us a step, forward and backward (the kernel of each alone), input and other products"
    for row in timed:
        us = row["us"]
        alone = {
            direction: "per_step" if us.get(f"{direction}_kernel") is None else f"{us[f'{direction}_kernel']:.2f}"
            for direction in DIRECTIONS
        }
        both = " ".join(
            f"{direction} {us[direction]:.2f} ({alone[direction]})" for direction in DIRECTIONS if direction in us
        )
        rest = sum(us.get(name) or 0.0 for name in ("dx", "dw_x", "dw_hh", "dbias"))
        yield f"  {row['math']} H{row['H']} B{row['B']}: {both} input {us['input']:.2f} others {rest:.2f}"


DIRECTIONS = ("forward", "backward")


def graph(rows: list[dict]) -> Iterator[str]:
    graphs = [row for row in _of(rows, "graph") if "same" in row]
    if graphs:
        bad = [f"{r['math']} {r['H']} {r['layout']} {r['mode']}" for r in graphs if not r["same"]]
        more = f"; not: {bad}" if bad else ""
        yield f"---- graph: {sum(bool(r['same']) for r in graphs)} of {len(graphs)} replays equal{more}"


def host(rows: list[dict]) -> Iterator[str]:
    timed = [row for row in _of(rows, "host") if "host_us" in row]
    if timed:
        yield "---- host: us of a call that does not wait for the GPU (that does); T 4"
    for mode in dict.fromkeys(row["mode"] for row in timed):
        words = [f"{r['library']} {r['host_us']:.0f} ({r['done_us']:.0f})" for r in timed if r["mode"] == mode]
        yield f"  {mode}: {', '.join(words)}"
    for row in _of(rows, "host"):
        if "launches" in row:
            yield f"  {row['library']} {row['mode']}: {row['launches']} kernels, copies and fills on the device"
    for mode in dict.fromkeys(row["mode"] for row in _of(rows, "host") if "own_us" in row):
        functions = [row for row in _of(rows, "host") if "own_us" in row and row["mode"] == mode][:6]
        yield f"  most of {mode}: " + ", ".join(f"{_function(r['name'])} {r['own_us']:.0f}" for r in functions)


def _function(name: str) -> str:
    """A function without its file: also of `<method 'to' of 'torch._C.TensorBase' objects>`."""
    return (name.split("'")[1] if "'" in name else name.split()[-1].strip("<>"))[:36]


def characters(rows: list[dict]) -> Iterator[str]:
    timed = [row for row in _of(rows, "characters") if "characters_per_second" in row]
    if timed:
        yield "---- characters: million a second (times torch's), eager, graph"
    keys = ("L", "H", "B", "T", "math", "autocast")
    for key in dict.fromkeys(tuple(r.get(k) for k in keys) for r in timed):
        runs = [r for r in timed if tuple(r.get(k) for k in keys) == key]
        rates = [_rate(r["characters_per_second"]) for r in sorted(runs, key=lambda r: r["graph"])]
        cast = "" if key[5] == "none" else f" autocast {key[5]}"
        yield f"  {key[0]}x{key[1]} B{key[2]} {key[4]}{cast}: {', '.join(rates)}{_bad(runs)}"


def _rate(rates: dict) -> str:
    if "cuda" not in rates:
        return "-"
    rate = rates["cuda"]
    return f"{rate / 1e6:.3f} ({rate / rates['torch']:.2f})" if "torch" in rates else f"{rate / 1e6:.3f} (-)"


def kernelbench(rows: list[dict]) -> Iterator[str]:
    timed = [row for row in _of(rows, "kernelbench") if "ms" in row]
    if timed:
        yield "---- kernelbench: ms (times as fast as nn.LSTM), eager, graph; published on an H100"
    for key in dict.fromkeys((r["problem"], r["math"]) for r in timed):
        runs = [r for r in timed if (r["problem"], r["math"]) == key]
        times = [_pair(r["ms"], 1.0) for r in sorted(runs, key=lambda r: r["graph"])]
        yield f"  {key[0]} {key[1]}: {', '.join(times)}; {runs[0]['published_ms']}{_bad(runs)}"


def _bad(rows: list[dict]) -> str:
    return " WRONG" if any(r.get("wrong") for r in rows) else ""


def ncu(rows: list[dict]) -> Iterator[str]:
    profiled = _of(rows, "ncu")
    if profiled:
        yield "---- ncu: what it counts, and the instructions with most samples (reason)"
    for row in profiled:
        name = str(row.get("kernel")).split("::")[-1].split("<")[0].removeprefix("void ")
        yield f"  {name} H{row.get('H')} B{row.get('B')}: {_launch(row)}"[:230]


def _launch(row: dict) -> str:
    if "hot" in row:
        hot = "; ".join(f"{samples} {text[:26]} ({why})" for _, text, samples, why in row["hot"][:4])
        return f"{row['samples']} samples, {hot}"
    if "metrics" in row:
        metrics = row["metrics"]
        stalls = [name for name in metrics if name.startswith("Stall ") and name.endswith("(inst)")]
        most = sorted(stalls, key=lambda name: -metrics[name])[:4]
        names = ("Duration (us)", "Executed Ipc Active (inst/cycle)", *most)
        return ", ".join(f"{name.split(' (')[0]} {metrics[name]:g}" for name in names if name in metrics)
    return str(row.get("refused") or row.get("no_source") or row.get("skipped"))


def triton(rows: list[dict]) -> Iterator[str]:
    checked = [row for row in _of(rows, "triton") if "fine" in row]
    if checked:
        applicable = [row for row in checked if row["fine"] is not None]
        yield (
            f"---- triton: {sum(r['fine'] for r in applicable)} of {len(applicable)} right, "
            f"{len(checked) - len(applicable)} do not apply"
        )


def errors(rows: list[dict]) -> Iterator[str]:
    failures = [row for row in rows if row["stage"] != "stage" and "error" in row]
    if failures:
        yield f"---- {len(failures)} errors, each kind once"
    for key in dict.fromkeys((row["stage"], row["error"]) for row in failures):
        items = [str(row.get("item", "")) for row in failures if (row["stage"], row["error"]) == key]
        yield f"  {key[0]} {items[0]} ({len(items)}): {key[1]}"[:260]


SECTION_LENGTHS = {
    stages: 900, environment: 700, ncu: 900, cudnn: 900, triton: 100, train: 1000, host: 800, characters: 900,
    kernelbench: 500, sweep: 2600, module: 3900, graph: 400, correctness: 900, errors: 800,
}  # fmt: skip
