"""Nsight Compute on six launches: why warps wait, and at which instructions.

The details page goes to ncu.txt, each instruction with its samples to ncu-….csv.gz (`sass.py` reads it), some numbers into
rows.
"""

from __future__ import annotations

import gzip
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path

from benchmarks.gpu_day import program, sass
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import GpuExecutor

LAUNCHES = (("lean", 1024, 16), ("cooperative", 1024, 16), ("lean", 512, 64))  # bfloat16, forward and backward each
T = 64
SECONDS, READ = 60, 25  # of a profile, of reading a page from its report
KEPT = (
    "Duration", "Elapsed Cycles", "SM Frequency", "Registers Per Thread", "Executed Ipc Active", "No Eligible",
    "Warp Cycles Per Issued Instruction", "L2 Hit Rate", "L2 Cache Throughput", "Memory Throughput", "Achieved Occupancy",
    "Local Memory Spilling Requests",
)  # fmt: skip
RUN_KERNEL = "from benchmarks.gpu_day import ncu; ncu.run_kernel({kernel!r}, {H}, {B})"


def items(executor: GpuExecutor) -> list[Item]:
    return [Item(f"{kernel} H{H} B{B}", (kernel, H, B)) for kernel, H, B in LAUNCHES]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    kernel, H, B = item.values
    columns = {"kernel": kernel, "math": "bf16", "H": H, "B": B, "T": T}
    ncu = program.tool("ncu")
    if executor.rehearsal:
        run_kernel(kernel, 16, 2, executor)
        pages = iter((("details", CANNED), ("source", CANNED_SOURCE)))
    elif ncu is None:
        yield {**columns, "skipped": "there is no ncu"}
        return
    else:
        pages = profiled(ncu, kernel, H, B, min(SECONDS, executor.until - time.time()))
    for page, text in pages:
        read = details if page == "details" else source
        for row in read(Path(executor.out), item.what, text):
            yield {**columns, **row}


def details(out: Path, what: str, text: str) -> Iterator[dict]:
    """The page into ncu.txt, its numbers as rows."""
    with open(out / "ncu.txt", "a") as file:
        file.write(f"==== {what}\n{text}\n")
    launches = parsed(text)
    for name, numbers in launches:
        yield {"kernel": name, "metrics": numbers}
    if not launches:
        yield {"refused": _end(text)}


def source(out: Path, what: str, text: str) -> Iterator[dict]:
    """The page into ncu-….csv.gz, cut to what matters (as it came where it cannot be read); where warps wait as rows."""
    launches = sass.launches(text)
    name = f"ncu-{what.replace(' ', '-')}.csv.gz"
    (out / name).write_bytes(gzip.compress((sass.written(launches) or text[: sass.MOST]).encode()))
    for launch in launches:
        yield {"kernel": launch.kernel[:80], "file": name, **sass.summary(launch)}
    if not launches:
        yield {"file": name, "no_source": _end(text)}


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-6:])[-600:]


def profiled(ncu: str, kernel: str, H: int, B: int, seconds: float) -> Iterator[tuple[str, str]]:
    """The details page and the source page of the first forward and the first backward launch, as text."""
    name_filter = f"regex:{kernel}_(forward|backward)"
    with tempfile.TemporaryDirectory(prefix="gpu-day-ncu-") as folder:
        report = str(Path(folder, "launches"))
        command = [ncu, "--clock-control", "none", "--set", "full", "-k", name_filter, "-c", "2", "-f", "-o", report]
        text, code = program.output(
            [*command, sys.executable, "-c", RUN_KERNEL.format(kernel=kernel, H=H, B=B)], seconds
        )
        if code != 0:
            text += f"\nexit code {code}"
        reports = glob(f"{report}*")  # the ending is ncu's
        if not reports:
            yield "details", text
            return
        opened = [ncu, "-i", reports[0], "--page"]
        details = _first([[*opened, "details", "--print-details", "all"], [*opened, "details"]], parsed)
        yield "details", f"{text}\n{details}"
        csv = [*opened, "source", "--csv"]
        yield "source", _first([[*csv, "--print-source", "sass"], csv], sass.launches)


def _first(commands: list[list[str]], useful: Callable[[str], list]) -> str:
    """The text of the first command that says something useful; of all of them where none does (ncu's options change)."""
    texts = []
    for command in commands:
        text, code = program.output(command, READ)
        if useful(text):
            return text
        texts.append(f"{text}\nexit code {code}")
    return "\n".join(texts)


def run_kernel(kernel: str, H: int, B: int, executor: GpuExecutor | None = None) -> None:
    """One forward and one backward call with a kernel: what is profiled."""
    import torch

    from benchmarks.gpu_day import sweep
    from fastlstm.backends.cuda.launch import LaunchPlan

    if executor is None:
        executor = GpuExecutor({"out": "", "until": 0.0, "lost": [], "stage": "ncu"})
    executor.start(warm=False)
    with executor.math("bf16"), torch.no_grad():
        plan = LaunchPlan(*executor.choose("bf16", H, B, only=kernel), False)
        inputs, grads, saved = sweep.prepare(executor, "bf16", H, B).of(T)
        executor.forward(plan, inputs)
        executor.backward(plan, grads, inputs, saved)
        executor.sync()


_LAUNCH = re.compile(r"^\s{2}(\S.*?)\s*\(\d+, \d+, \d+\)x\(\d+, \d+, \d+\)")
_METRIC = re.compile(r"^\s+(.+?)\s{2,}(?:(\S+)\s+)?([\d.,]+)\s*$")
_STALL = re.compile(r"([\d.,]+) cycles being stalled (.+?)\.", re.S)


def parsed(text: str) -> list[tuple[str, dict[str, float | str]]]:
    """Name and numbers of each launch in a details page; a stall is what its rule says of it."""
    launches: list[tuple[str, dict[str, float | str]]] = []
    for line in text.splitlines():
        launch, metric = _LAUNCH.match(line), _METRIC.match(line)
        if launch:
            launches.append((launch[1][:80], {}))
        elif metric and launches and (metric[1].strip() in KEPT or metric[1].strip().startswith("Stall ")):
            unit = f" ({metric[2]})" if metric[2] else ""
            launches[-1][1][metric[1].strip() + unit] = float(metric[3].replace(",", ""))
    for number, part in enumerate(re.split(_LAUNCH.pattern.replace("(\\S.*?)", "\\S.*?"), text, flags=re.M)[1:]):
        for cycles, why in _STALL.findall(part):
            if number < len(launches):
                launches[number][1]["stall"] = f"{cycles} cycles {' '.join(why.split())}"[:200]
                break
    return launches


CANNED = """
==PROF== Connected to process 1 (python)
  void cooperative_forward_kernel<bfloat_t>(KernelParams<ForwardArgs>) (128, 1, 1)x(256, 1, 1), Context 1, Stream 7, Device 0
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    Elapsed Cycles                cycle      254,321
    Duration                         us       143.20
    ----------------------- ----------- ------------
    OPT   Est. Speedup: 44.5%
          On average, each warp of this workload spends 9.1 cycles being stalled waiting for a scoreboard dependency on a
          L1TEX (local, global, surface, texture) operation. Find the instruction producing the data.
    Registers Per Thread             register/thread              128
  void cooperative_backward_kernel<bfloat_t>(KernelParams<BackwardArgs>) (64, 2, 1)x(256, 1, 1), Context 1, Stream 7, Device 0
    Duration                         us       201.00
"""

CANNED_SOURCE = """==PROF== Disconnected from process 1
"Kernel Name","void cooperative_forward_kernel<bfloat_t>(KernelParams<ForwardArgs>)",
"Address","Source","Warp Stall Sampling (All Samples)","Warp Stall Sampling (Not-issued Samples)","# Samples",\
"Instructions Executed","Instructions Executed","L1 Wavefronts Shared","Access Size","stall_long_sb","stall_tex","stall_wait",\
"stall_long_sb (Not Issued)","stall_wait (Not Issued)","smsp__pcsamp_warps_issue_stalled_wait"
"0x7f3c1a200d00","      LDG.E.128 R4, desc[UR6][R2.64] ","12","10","12","1,024","1,024","0","128","2","0","10","1","9","10"
"0x7f3c1a200d10","@!P0  HMMA.16816.F32 R8, R4, R6, R8 ","300","290","300","65,536","65,536","0","-","280","0","20","275","15","20"
"0x7f3c1a200d20","      EXIT ","0","0","0","1,024","1,024","0","-","0","0","0","0","0","0"
"Kernel Name","void cooperative_backward_kernel<bfloat_t>(KernelParams<BackwardArgs>)",
"Address","Source","# Samples","Instructions Executed","stall_wait"
"0x7f3c1a300000","      MOV R1, c[0x0][0x28] ","7","1,024","7"
"""
