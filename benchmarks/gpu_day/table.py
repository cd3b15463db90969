"""The short table at the end, from raw.jsonl: what a person reads first. It stays under 11,000 characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.gpu_day.rows import read

MOST = 11_000


def of(path: Path, begin: float = 0.0) -> str:
    """The table of what was written since then; sections that are too long for their room are cut at their ends."""
    rows, parts = [row for row in read(path) if row["t"] >= begin], []
    for section, room in ROOMS.items():
        text = "\n".join(section(rows))
        parts.append(text if len(text) <= room else text[:room].rsplit("\n", 1)[0] + "\n  … more in raw.jsonl")
    seconds = rows[-1]["t"] - rows[0]["t"] if rows else 0.0
    parts.append(f"{len(rows)} rows in {path.name}, {seconds:.0f} s in all")
    return "\n".join(part for part in parts if part)[-MOST:]


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
        yield ("  env " + " ".join(f"{k} {v}" for k, v in words.items()))[:400]


def right(rows: list[dict]) -> Iterator[str]:
    found = [row for row in _of(rows, "right") if "fine" in row]
    if not found:
        return
    yield "---- right: fine of all, worst error over what is allowed (forward, backward)"
    for key in dict.fromkeys((r["kernel"], r["math"]) for r in found):
        mine = [r for r in found if (r["kernel"], r["math"]) == key]
        worst = [max((float(r["worst"]) for r in mine if r["backward"] == back), default=0.0) for back in (False, True)]
        fine = sum(r["fine"] for r in mine)
        bad = sorted({f"{r['case']} {'backward' if r['backward'] else 'forward'}" for r in mine if not r["fine"]})
        more = f"  WRONG: {'; '.join(bad)[:150]}" if bad else ""
        yield f"  {key[0]:<10} {key[1]:<5} {fine} of {len(mine)}, {worst[0]:.2f}, {worst[1]:.2f}{more}"


def module(rows: list[dict]) -> Iterator[str]:
    found = [row for row in _of(rows, "module") if "seconds" in row]
    if not found:
        return
    yield "---- module: ms ours / nn.LSTM (times faster), eager then graph; inference | training"
    for key in dict.fromkeys((r["math"], r["layout"], r["L"], r["H"], r["B"]) for r in found):
        mine = [r for r in found if (r["math"], r["layout"], r["L"], r["H"], r["B"]) == key]
        parts = [" ".join(_pair(r["seconds"]) for r in mine if r["training"] == training) for training in (False, True)]
        bad = " WRONG" if any(r["wrong"] for r in mine) else ""
        kernel = mine[0]["plan"].split(":")[1].strip() if ":" in mine[0]["plan"] else ""
        yield f"  {key[0]:<5} {key[2]}x{key[3]:<5} B{key[4]:<4} {key[1]:<8.8} {parts[0]} | {parts[1]} {kernel}{bad}"


def _pair(seconds: dict) -> str:
    if "cuda" not in seconds or "torch" not in seconds:
        return "-"
    return f"{1e3 * seconds['cuda']:.3g}/{1e3 * seconds['torch']:.3g} ({seconds['torch'] / seconds['cuda']:.2f})"


def cudnn(rows: list[dict]) -> Iterator[str]:
    found = [row for row in _of(rows, "cudnn") if row.get("us") and row["graph"] and row["L"] == 1]
    if not found:
        return
    yield "---- nn.LSTM in a graph: us a step, inference/training, by B"
    for key in dict.fromkeys((r["math"], r["layout"], r["H"]) for r in found):
        mine = [r for r in found if (r["math"], r["layout"], r["H"]) == key]
        by = {B: {r["mode"]: r for r in mine if r["B"] == B} for B in sorted({r["B"] for r in mine})}
        words = [f"B{B} " + "/".join(f"{r['us']:.2f}" for r in modes.values()) for B, modes in by.items()]
        yield f"  {key[0]:<13} H{key[2]:<5} {key[1]:<9.9} {'  '.join(words)}"


def sweep(rows: list[dict]) -> Iterator[str]:
    found = [row for row in _of(rows, "sweep") if row.get("us")]
    if not found:
        return
    yield "---- sweep: us a step, the planner's pick (predicted), the best (predicted) and its tiling"
    for key in dict.fromkeys((r["math"], r["H"], r["B"], r["backward"]) for r in found):
        mine = [r for r in found if (r["math"], r["H"], r["B"], r["backward"]) == key]
        planner = next((r for r in mine if r["planner"]), None)
        fine = [r for r in mine if not r["wrong"]]
        best = min(fine or mine, key=lambda r: r["us"])
        picked = f"{planner['us']:.2f} ({planner['predicted_us']:.2f})" if planner else "-"
        tiling = "x".join(str(best["tiling"].get(k)) for k in ("groups", "k_splits", "row_tiles", "gate_splits"))
        bad = f" {len(mine) - len(fine)} WRONG" if len(fine) < len(mine) else ""
        words = f"{best['us']:.2f} ({best['predicted_us']:.2f}) {best['kernel']} {tiling}, {len(mine)} tilings{bad}"
        yield f"  {key[0]:<5} H{key[1]:<5} B{key[2]:<4} {'backward' if key[3] else 'forward':<8} {picked:<14} {words}"


def others(rows: list[dict]) -> Iterator[str]:
    for row in _of(rows, "train"):
        if "us" in row:
            yield f"  train {row['math']} H{row['H']} B{row['B']}: " + " ".join(
                f"{k} {v:.2f}" for k, v in row["us"].items()
            )
    graphs = [row for row in _of(rows, "graph") if "same" in row]
    if graphs:
        bad = [f"{r['math']} {r['H']} {r['layout']} {r['mode']}" for r in graphs if not r["same"]]
        yield f"  graph: {sum(bool(r['same']) for r in graphs)} of {len(graphs)} replays equal" + (
            f"; not: {bad}" if bad else ""
        )
    for row in _of(rows, "characters"):
        if "characters_per_second" in row:
            rates = " ".join(f"{k} {v:,.0f}/s" for k, v in row["characters_per_second"].items())
            kind = (
                f"{row['L']}x{row['H']} B{row['B']} {row['math']} {row['autocast']}{' graph' if row['graph'] else ''}"
            )
            yield f"  characters {kind}: {rates}"
    for row in _of(rows, "kernelbench"):
        if "ms" in row:
            ms = " ".join(f"{k} {v:.2f}" for k, v in row["ms"].items())
            kind = f"{row['problem']} {row['math']}{' graph' if row['graph'] else ''}"
            yield f"  kernelbench {kind}: {ms} ms, published {row['published_ms']}"
    triton = [row for row in _of(rows, "triton") if "fine" in row]
    if triton:
        yield f"  triton: {sum(r['fine'] for r in triton)} of {len(triton)} right"
    for row in _of(rows, "ncu"):
        yield f"  ncu {row.get('kernel')}: {row.get('metrics') or row.get('refused') or row.get('skipped')}"[:300]


def errors(rows: list[dict]) -> Iterator[str]:
    found = [row for row in rows if row["stage"] != "stage" and "error" in row]
    if found:
        yield f"---- {len(found)} errors, each kind once"
    for key in dict.fromkeys((row["stage"], row["error"]) for row in found):
        items = [str(row.get("item", "")) for row in found if (row["stage"], row["error"]) == key]
        yield f"  {key[0]} {items[0]} ({len(items)}): {key[1]}"[:260]


ROOMS = {stages: 1300, environment: 600, right: 1100, module: 2600, cudnn: 1300, sweep: 1700, others: 1400, errors: 800}
