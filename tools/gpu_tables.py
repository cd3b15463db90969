"""Tables of docs/gpu-resources.md and docs/gpu-model.md, as Markdown text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastlstm.backends import cost_model, native
from fastlstm.backends.cuda import planner as cuda_planner

CODES = {"float32": 0, "tf32": 1, "float16": 2, "bfloat16": 3}  # csrc/cuda/args.h
LAUNCHES = """A launch, forward / backward, at B = 16: kernel, blocks × threads, KiB of shared memory of a block. What a
block can ask for stands beside the device's name.
"""
_SIZES = (32, 128, 256, 512, 768, 1024, 1536)
STEPS = """Instructions that a warp issues in a pass through a step when it waits for nothing (backward: cells and products),
and of them from the barrier to the first word that it sends. Polling loops are left out, branches count as not taken.
"""
_DEVICES = ("T4", "A100", "RTX 4090", "H100", "RTX 5090")


def markdown(head: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
    """A table whose columns line up in a terminal."""
    cells = [[str(cell) for cell in line] for line in [head, *lines]]
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    text.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(text) + "\n"


def summary(rows: list[dict]) -> str:
    """The worst of each architecture."""
    head = [
        "architecture",
        "kernels",
        "most registers",
        "most shared memory",
        "its limit",
        "stack bytes",
        "LDL/STL in loops",
    ]
    lines = []
    for capability in sorted({row["capability"] for row in rows}):
        kernel_rows = [row for row in rows if row["capability"] == capability]
        most = max(kernel_rows, key=lambda row: row["shared"])
        shared = f"{most['shared'] / 1024:.1f} KiB" if most["shared"] else "at launch"
        lines.append(
            (
                f"sm_{capability}",
                len(kernel_rows),
                max(row["registers"] for row in kernel_rows),
                shared,
                f"{most['limit'] / 1024:.0f} KiB",
                max(row["stack"] for row in kernel_rows),
                sum(row["spills"] for row in kernel_rows),
            )
        )
    return markdown(head, lines)


def kernels(rows: list[dict]) -> str:
    """One line per kernel, one column per architecture."""
    return _by_kernel(rows, _cell, lambda newest: (_unit(newest),), ("unit",))


def steps(rows: list[dict]) -> str:
    """The instructions of a step, for the kernels of which they are read."""
    return _by_kernel([row for row in rows if row.get("step_instructions")], _step)


def _by_kernel(rows: list[dict], cell: Callable, last: Callable = lambda newest: (), heads: tuple = ()) -> str:
    capabilities = sorted({row["capability"] for row in rows})
    head = ["kernel", "math", "tile", "options", *(f"sm_{c}" for c in capabilities), *heads]
    grouped: dict[tuple, dict[int, dict]] = {}
    for row in rows:
        grouped.setdefault((row["kernel"], row["math"], row["tile"], row["options"]), {})[row["capability"]] = row
    lines = []
    for key, by_capability in sorted(grouped.items()):
        cells = (cell(by_capability[c]) if c in by_capability else "-" for c in capabilities)
        lines.append((*key, *cells, *last(by_capability[max(by_capability)])))
    return markdown(head, lines) if lines else ""


def _unit(row: dict) -> str:
    return "tensor cores" if row["tensor"] else "FFMA" if row["ffma"] > 60 else "pointwise"


def _step(row: dict) -> str:
    return f"{row['step_instructions']} / {row['send_instructions'] or '-'}"


def _cell(row: dict) -> str:
    shared = f" / {row['shared'] / 1024:.1f}" if row["shared"] else ""
    return f"{row['registers']}{shared}"


def stacks(rows: list[dict]) -> str:
    """Which kernels have a stack, or that none has."""
    named = [
        f"- sm_{r['capability']} {r['kernel']} ({', '.join(v for v in (r['math'], r['tile'], r['options']) if v)}): "
        f"{r['stack']} bytes of stack, {r['spills']} local-memory instructions in loops"
        for r in rows
        if r["stack"] or r["spills"]
    ]
    return "Kernels with a stack:\n\n" + "\n".join(named) + "\n" if named else "No kernel has a stack or spills.\n"


def launches() -> str:
    """What the planner of the CUDA kernels picks, per device and type."""
    lib, parts = native.load().plan, []
    for math in ("bfloat16", "float32"):
        head = [f"{math}, H", *(f"{name} ({cost_model.KNOWN[name].shared_kib})" for name in _DEVICES)]
        lines = [
            (H, *(_launch(cuda_planner.choices(lib, cost_model.KNOWN[d], CODES[math], H=H, B=16)) for d in _DEVICES))
            for H in _SIZES
        ]
        parts.append(markdown(head, lines))
    return "\n".join(parts)


def _launch(choices: tuple) -> str:
    words = []
    for choice in choices:
        size = f" {choice.blocks} × {choice.threads}, {choice.shared_bytes / 1024:.0f}" if choice.blocks else ""
        words.append(choice.kernel + size)
    return words[0] if words[0] == words[1] else " / ".join(words)
