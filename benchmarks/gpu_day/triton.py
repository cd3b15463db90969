"""Triton's kernels, short: right or wrong for a few cases, compiled by several processes at once, and a few times."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch

import fastlstm
from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item, error_columns
from benchmarks.gpu_day.executor import ALLOWED, MATHS, GpuExecutor
from benchmarks.gpu_day.layers import LayerConfig, call_of, input_of, make_lstm, make_torch_lstm, relative_difference
from fastlstm import backends
from fastlstm.testing.cases import Case
from fastlstm.verify import correctness

KERNELS = ("single_block", "streamed", "per_step")
TIMED = tuple(
    LayerConfig("dense", math, 1, H, B, 128) for math in ("bf16", "tf32") for H, B in ((128, 16), (512, 16), (128, 64))
)


def _sized(T: int, B: int, I: int, H: int, **on: Any) -> Case:
    return Case(f"T{T}B{B}I{I}H{H}", T, B, I, H, H, **on)


CASES = (_sized(7, 3, 5, 40), _sized(9, 33, 40, 100, reset=True), _sized(5, 17, 8, 256))


def items(executor: GpuExecutor) -> list[Item]:
    timed = (LayerConfig("dense", "f32", 1, 8, 2, 2),) if executor.rehearsal else TIMED
    return [Item("compile and check", ("check",)), *(Item(config.what, ("time", config)) for config in timed)]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    yield from _checked(executor) if item.values[0] == "check" else _timed(executor, item.values[1])


def _checked(executor: GpuExecutor) -> Iterator[dict]:
    """Each kernel and type in a process of the pool; the timed layers' kernels are compiled there too."""
    maths = ("f32",) if executor.rehearsal else tuple(MATHS)
    cases = (_sized(3, 2, 3, 8),) if executor.rehearsal else CASES
    kernels = KERNELS[:1] if executor.rehearsal else KERNELS
    jobs = [(check, (kernel, math, cases, str(executor.device))) for kernel, math in product(kernels, maths)]
    jobs += [] if executor.rehearsal else [(warm, (config, str(executor.device))) for config in TIMED]
    workers = min(len(jobs), os.cpu_count() or 2)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for future in [pool.submit(work, *arguments) for work, arguments in jobs]:
            try:
                yield from future.result()
            except Exception as error:
                yield error_columns(error)


def check(kernel: str, math: str, cases: tuple[Case, ...], device: str) -> list[dict]:
    """Cases through one kernel in one type."""
    rows = []
    for case in cases:
        outcome = correctness.outcome_of(
            backends.load("triton"), correctness.CaseRun(kernel, MATHS[math], case, 1), torch.device(device)
        )
        skipped = outcome.verdict is correctness.Verdict.SKIPPED
        fine = None if skipped else outcome.verdict is correctness.Verdict.PASSED
        row = {"kernel": kernel, "math": math, "case": case.id, "fine": fine}
        reasons = {"wrong": "" if skipped else outcome.reason[:300], "skipped": outcome.reason[:200] if skipped else ""}
        rows.append({**row, **reasons})
        if outcome.fatal:
            break
    return rows


def warm(config: LayerConfig, device: str) -> list[dict]:
    """Compile what a timed layer runs, into the cache that all processes share."""
    executor = GpuExecutor({"out": "", "until": 0.0, "lost": [], "stage": "triton"})
    executor.device = torch.device(device)
    for row in _timed(executor, config._replace(T=2), warming=True):
        del row
    return []


def _timed(executor: GpuExecutor, config: LayerConfig, warming: bool = False) -> Iterator[dict]:
    with executor.math(config.math):
        torch.manual_seed(0)
        torch_lstm = make_torch_lstm(config, executor)
        lstm = make_lstm(torch_lstm, config, executor)
        for training in (False, True):
            mode = "training" if training else "inference"
            x = input_of(config, executor, training)
            with fastlstm.backend("triton"):
                plain = call_of(lstm, x, mode)

            def call(plain: measure.TimedCall = plain) -> Any:
                with fastlstm.backend("triton"):
                    return plain()

            calls = {"torch": call_of(torch_lstm, x, mode), "triton": call}
            off = relative_difference(calls["triton"](), calls["torch"]())
            plan = fastlstm.dispatch.last_plan()
            if warming:
                continue
            seconds, repeats = measure.in_turns(executor, calls)
            row = {
                **config.columns,
                "training": training,
                "graph": False,
                "off": off,
                "wrong": not off <= 3 * ALLOWED[config.math],
            }
            yield {**row, "plan": plan[:120], "seconds": seconds, "repeats": repeats}
