"""Writes docs/gpu-resources.md: registers, shared memory, spills and instructions of every GPU kernel.

    python -m tools.gpu_resources                            render from docs/gpu-resources/*.jsonl
    python -m tools.gpu_resources --compile triton 80 90     compile a backend's kernels for these architectures first
    python -m tools.gpu_resources --compile cuda             for all architectures; needs nvcc, any warning is an error

Each backend keeps its rows in docs/gpu-resources/BACKEND.jsonl, one JSON object a kernel, and who compiled them in
BACKEND.version; cuda also keeps what nvcc said, in cuda.txt. No GPU is involved.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.gpu_day.row_file import with_current_names
from fastlstm.backends import cost_model
from tools import cuda_compile, gpu_tables

ROOT = Path(__file__).parent.parent
DATA = ROOT / "docs" / "gpu-resources"
PAGE = ROOT / "docs" / "gpu-resources.md"
ARCHITECTURES = {"triton": (80, 86, 89, 90, 100, 120), "cuda": (75, 80, 86, 89, 90, 100, 120)}
HEAD = """# What the GPU kernels compile to

Written by `python -m tools.gpu_resources` (from `docs/gpu-resources/*.jsonl`); read from machine code, no GPU involved.
It says nothing about speed. A cell is registers a thread / shared memory in KiB (cuda: registers alone, its shared
memory is asked for at launch); a dash: the planner does not pick it there.
"""
NOTES = {
    "triton": "*tile*: rows × units / terms of a block of the sum, w warps, s stages. *options*: plain is dense; full is "
    "packed with resets, ids, gradients into everything and an odd H. Every variant that the planner picks over its "
    "committed list of (device, H, B, type) is here.\n\nTried with Triton 3.5.0, 3.5.1, 3.6.0, 3.7.0, 3.8.0 and 3.9.0: the "
    "kernels of all shapes compile for sm_90, once whatever T and B are, and the interpreter's tests of every shape and "
    "the module's pass (53 tests; NumPy 2.3 for 3.5 and 3.6, whose interpreter does not run with NumPy 2.4).\n",
    "cuda": "All template instances, with warnings as errors; commands and the compiler's words are in "
    "`docs/gpu-resources/cuda.txt`. On sm_75 the planner uses the recurrent kernels for float32 and float16 only. "
    "Loads of exchanged data are `LDG….STRONG.GPU`; no kernel has an `LDG….CONSTANT` in a loop (tests hold it to that).\n",
}


def compile_backend(backend: str, capabilities: list[int], jobs: int) -> None:
    """Compile for each architecture in processes of their own and replace their rows."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    waiting, running, fresh, logs = list(capabilities), [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                capability = waiting.pop(0)
                out, log = Path(folder, f"{capability}.jsonl"), Path(folder, f"{capability}.txt")
                command = [sys.executable, "-m", f"tools.{backend}_compile", str(capability), "--json", str(out)]
                command += ["--log", str(log)] if backend == "cuda" else []
                running.append((subprocess.Popen(command, cwd=ROOT, env=env), out, log))
            process, out, log = running.pop(0)
            if process.wait():
                raise SystemExit(f"compiling into {out.name} ended with code {process.returncode}")
            fresh += read(out)
            logs[int(log.stem)] = log.read_text(encoding="utf-8") if log.exists() else ""
    store(backend, capabilities, fresh, logs)


def store(backend: str, capabilities: list[int], fresh: list[dict], logs: dict[int, str]) -> None:
    """Put the rows of these architectures into the backend's file, beside those of others."""
    kept = [row for row in read(DATA / f"{backend}.jsonl") if row["capability"] not in capabilities]
    DATA.mkdir(exist_ok=True)
    lines = [json.dumps(row) for row in sorted(kept + fresh, key=_order)]
    (DATA / f"{backend}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if backend == "cuda":
        by = f"nvcc {cuda_compile.version(cuda_compile.find_nvcc())}"
        if set(capabilities) == set(ARCHITECTURES["cuda"]):
            (DATA / "cuda.txt").write_text("".join(logs[c] for c in sorted(logs)), encoding="utf-8")
    else:
        by = f"Triton {metadata.version('triton')}"
    (DATA / f"{backend}.version").write_text(f"{by}\n", encoding="utf-8")


def read(path: Path) -> list[dict]:
    """The rows of a file, kernels by today's names; none if it is not there."""
    if not path.exists():
        return []
    return [with_current_names(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _order(row: dict) -> tuple:
    return row["kernel"], row["math"], row["tile"], row["options"], row["capability"]


def render() -> str:
    """The page, from all backends' rows."""
    parts = [HEAD]
    for path in sorted(DATA.glob("*.jsonl")):
        rows, backend = read(path), path.stem
        version = path.with_suffix(".version").read_text(encoding="utf-8").strip()
        parts += [f"## {backend}\n", f"Compiled by {version}. {NOTES[backend]}"]
        parts += [gpu_tables.summary(rows), gpu_tables.kernels(rows), gpu_tables.stacks(rows)]
        if backend == "cuda":
            if counted := gpu_tables.steps(rows):
                parts += ["### Instructions of a step of `lean`\n", gpu_tables.STEPS, counted]
            parts += ["### Launches that the planner picks\n", gpu_tables.LAUNCHES, gpu_tables.launches()]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def main() -> None:
    """Compile if asked, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", nargs="+", metavar=("BACKEND", "ARCH"), help="cuda or triton, and architectures")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.compile:
        backend, *archs = options.compile
        if backend not in ARCHITECTURES:
            parser.error(f"backend is '{backend}', expected cuda or triton")
        known = {d.capability for d in cost_model.KNOWN.values()}
        if unknown := [arch for arch in archs if not arch.isdigit() or int(arch) not in known]:
            parser.error(f"architectures {unknown} are not known, expected some of {sorted(known)}")
        compile_backend(backend, [int(arch) for arch in archs] or list(ARCHITECTURES[backend]), options.jobs)
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
