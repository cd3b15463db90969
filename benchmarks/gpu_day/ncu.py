"""Nsight Compute on four launches: why warps wait. The whole text goes to ncu.txt, a few numbers into rows."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_day import program
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.place import Place

LAUNCHES = (("persistent", 1024, 16), ("tile", 128, 16))  # bfloat16, forward and backward each
T = 64
SECONDS = 60
KEPT = (
    "Duration", "Elapsed Cycles", "SM Frequency", "Registers Per Thread", "Executed Ipc Active", "No Eligible",
    "Warp Cycles Per Issued Instruction", "L2 Hit Rate", "L2 Cache Throughput", "Memory Throughput", "Achieved Occupancy",
    "Local Memory Spilling Requests",
)  # fmt: skip
ONE = "from benchmarks.gpu_day import ncu; ncu.one({kernel!r}, {H}, {B})"


def items(place: Place) -> list[Item]:
    return [Item(f"{kernel} H{H} B{B}", (kernel, H, B)) for kernel, H, B in LAUNCHES]


def run(place: Place, item: Item) -> Iterator[dict]:
    kernel, H, B = item.values
    ncu = program.tool("ncu")
    if place.rehearsal:
        one(kernel, 16, 2, place)
        text = CANNED
    elif ncu is None:
        yield {"kernel": kernel, "skipped": "there is no ncu"}
        return
    else:
        text = profiled(ncu, kernel, H, B, min(SECONDS, place.until - time.time()))
        with open(Path(place.out) / "ncu.txt", "a") as file:
            file.write(f"==== {item.what}\n{text}\n")
    launches = parsed(text)
    for name, numbers in launches:
        yield {"kernel": name, "math": "bf16", "H": H, "B": B, "T": T, "metrics": numbers}
    if not launches:
        yield {"kernel": kernel, "H": H, "B": B, "refused": "\n".join(text.strip().splitlines()[-6:])[-600:]}


def profiled(ncu: str, kernel: str, H: int, B: int, seconds: float) -> str:
    """The details page of the first forward and the first backward launch."""
    wanted = f"regex:{kernel}_(forward|backward)"
    command = [ncu, "--clock-control", "none", "--set", "full", "--page", "details", "-k", wanted, "-c", "2"]
    profiled = [sys.executable, "-c", ONE.format(kernel=kernel, H=H, B=B)]
    text, code = program.output([*command, "--print-details", "all", *profiled], seconds)
    if "unrecognised option" in text:  # an older ncu
        text, code = program.output([*command, *profiled], seconds)
    return text if code == 0 else f"{text}\nexit code {code}"


def one(kernel: str, H: int, B: int, place: Place | None = None) -> None:
    """One forward and one backward call with a kernel: what is profiled."""
    import torch

    from benchmarks.gpu_day import sweep
    from fastlstm.backends.cuda_op import Plan

    if place is None:
        place = Place({"out": "", "until": 0.0, "lost": [], "stage": "ncu"})
    place.start(warm=False)
    with place.math("bf16"), torch.no_grad():
        plan = Plan(*place.choose("bf16", H, B, only=kernel), False)
        inputs, grads, saved = sweep.ready(place, "bf16", H, B).of(T)
        place.forward(plan, inputs)
        place.backward(plan, grads, inputs, saved)
        place.sync()


_LAUNCH = re.compile(r"^\s{2}(\S.*?)\s*\(\d+, \d+, \d+\)x\(\d+, \d+, \d+\)")
_METRIC = re.compile(r"^\s+(.+?)\s{2,}(?:(\S+)\s+)?([\d.,]+)\s*$")
_STALL = re.compile(r"([\d.,]+) cycles being stalled (.+?)\.", re.S)


def parsed(text: str) -> list[tuple[str, dict[str, float | str]]]:
    """Name and numbers of each launch in a details page; a stall is what its rule says of it."""
    found: list[tuple[str, dict[str, float | str]]] = []
    for line in text.splitlines():
        launch, metric = _LAUNCH.match(line), _METRIC.match(line)
        if launch:
            found.append((launch[1][:80], {}))
        elif metric and found and (metric[1].strip() in KEPT or "stall" in metric[1].lower()):
            unit = f" ({metric[2]})" if metric[2] else ""
            found[-1][1][metric[1].strip() + unit] = float(metric[3].replace(",", ""))
    for number, part in enumerate(re.split(_LAUNCH.pattern.replace("(\\S.*?)", "\\S.*?"), text, flags=re.M)[1:]):
        for cycles, why in _STALL.findall(part):
            if number < len(found):
                found[number][1]["stall"] = f"{cycles} cycles {' '.join(why.split())}"[:200]
                break
    return found


CANNED = """
==PROF== Connected to process 1 (python)
  void persistent_forward_kernel<__nv_bfloat16>(Laid<ForwardArgs>) (128, 1, 1)x(256, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
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
  void persistent_backward_kernel<__nv_bfloat16>(Laid<BackwardArgs>) (64, 2, 1)x(256, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Duration                         us       201.00
"""
