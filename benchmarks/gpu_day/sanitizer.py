"""compute-sanitizer's memcheck on what the stage `right` found wrong or lost; its text goes to sanitizer.txt.

Where nothing was wrong, on one case each of the kernels whose blocks wait for each other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_day import correctness, program
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import GpuExecutor
from benchmarks.gpu_day.row_file import read

MOST, SECONDS = 2, 38
ALWAYS = (("lean", "bf16", "packed reverse"), ("cooperative", "bf16", "packed reverse"))
RUN_CASES = "from benchmarks.gpu_day import sanitizer; sanitizer.run_cases({kernel!r}, {math!r}, {case!r})"
CANNED = "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 16 bytes\n========= ERROR SUMMARY: 1 error\n"


def items(executor: GpuExecutor) -> list[Item]:
    if executor.rehearsal:
        return [Item(f"{kernel} bf16 dense", (kernel, "bf16", "dense")) for kernel in ("lean", "cooperative")]
    rows = [
        row for row in read(Path(executor.out) / "raw.jsonl") if row["t"] >= executor.begin
    ]  # not of an earlier run
    judged = any(row["stage"] == "right" for row in rows)
    return [Item(" ".join(what), what) for what in wrong(rows) or ALWAYS * judged]


def wrong(rows: list[dict]) -> list[tuple[str, str, str]]:
    """Kernel, type and case of what was wrong, one case of a kernel and type; all cases ("") where a process was lost."""
    cases: dict[tuple[str, str], str] = {}
    for row in rows:
        if row["stage"] == "right" and row.get("fine") is False:
            cases.setdefault((row["kernel"], row["math"]), row["case"])
        elif row["stage"] == "stage" and row.get("name") == "right" and len(row.get("lost", "").split()) == 2:
            cases.setdefault(tuple(row["lost"].split()), "")
    return [(*key, case) for key, case in cases.items()][:MOST]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    kernel, math, case = item.values
    tool = program.tool("compute-sanitizer")
    if executor.rehearsal:
        run_cases(kernel, math, case, executor)
        text, code = CANNED, 0
    elif tool is None:
        yield {"item": item.what, "skipped": "there is no compute-sanitizer"}
        return
    else:
        command = [tool, "--tool", "memcheck", "--print-limit", "6", sys.executable, "-c"]
        command.append(RUN_CASES.format(kernel=kernel, math=math, case=case))
        seconds = min(SECONDS, executor.until - time.time())
        text, code = program.output(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        with open(Path(executor.out) / "sanitizer.txt", "a") as file:
            file.write(f"==== {item.what}\n{text[:2_000_000]}\n")
    yield {"item": item.what, "code": code, "said": report_lines(text)}


def report_lines(text: str) -> list[str]:
    return [line[:200] for line in text.splitlines() if line.startswith("=========")][:12]


def run_cases(kernel: str, math: str, case: str, executor: GpuExecutor | None = None) -> None:
    """The cases of this name (all: "") through a kernel."""
    if executor is None:
        executor = GpuExecutor({"out": "", "until": 0.0, "lost": [], "stage": "sanitizer"})
    executor.start(warm=False)
    cases = tuple(c for c in correctness.cases(executor) if case in ("", c.id))
    for row in correctness.check_kernel(executor, kernel, math, cases):
        print(row, flush=True)
