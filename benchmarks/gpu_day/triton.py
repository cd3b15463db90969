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
from benchmarks.gpu_day.child import Item, trouble
from benchmarks.gpu_day.layers import GridPoint, call_of, far, input_of, ours, theirs
from benchmarks.gpu_day.place import ALLOWED, MATHS, Place
from fastlstm import backends
from fastlstm.testing.cases import Case
from fastlstm.verify import correctness

SHAPES = ("single_block", "streamed", "per_step")
TIMED = tuple(
    GridPoint("dense", math, 1, H, B, 128) for math in ("bf16", "tf32") for H, B in ((128, 16), (512, 16), (128, 64))
)


def _sized(T: int, B: int, I: int, H: int, **on: Any) -> Case:
    return Case(f"T{T}B{B}I{I}H{H}", T, B, I, H, H, **on)


CASES = (_sized(7, 3, 5, 40), _sized(9, 33, 40, 100, reset=True), _sized(5, 17, 8, 256))


def items(place: Place) -> list[Item]:
    timed = (GridPoint("dense", "f32", 1, 8, 2, 2),) if place.rehearsal else TIMED
    return [Item("compile and check", ("check",)), *(Item(cell.what, ("time", cell)) for cell in timed)]


def run(place: Place, item: Item) -> Iterator[dict]:
    yield from _checked(place) if item.values[0] == "check" else _timed(place, item.values[1])


def _checked(place: Place) -> Iterator[dict]:
    """Each kernel shape and type in a process of the pool; the timed cells' kernels are compiled there too."""
    maths = ("f32",) if place.rehearsal else tuple(MATHS)
    cases = (_sized(3, 2, 3, 8),) if place.rehearsal else CASES
    shapes = SHAPES[:1] if place.rehearsal else SHAPES
    jobs = [(check, (shape, math, cases, str(place.device))) for shape, math in product(shapes, maths)]
    jobs += [] if place.rehearsal else [(warm, (cell, str(place.device))) for cell in TIMED]
    workers = min(len(jobs), os.cpu_count() or 2)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for future in [pool.submit(work, *given) for work, given in jobs]:
            try:
                yield from future.result()
            except Exception as error:
                yield trouble(error)


def check(shape: str, math: str, cases: tuple[Case, ...], device: str) -> list[dict]:
    """Cases through one kernel shape in one type."""
    rows = []
    for case in cases:
        outcome = correctness.outcome_of(
            backends.load("triton"), correctness.CaseRun(shape, MATHS[math], case, 1), torch.device(device)
        )
        row = {"kernel": shape, "math": math, "case": case.id, "fine": None if outcome.skipped else not outcome.wrong}
        rows.append({**row, "wrong": outcome.wrong[:300], "skipped": outcome.skipped[:200]})
        if outcome.fatal:
            break
    return rows


def warm(cell: GridPoint, device: str) -> list[dict]:
    """Compile what a timed cell runs, into the cache that all processes share."""
    place = Place({"out": "", "until": 0.0, "lost": [], "stage": "triton"})
    place.device = torch.device(device)
    for row in _timed(place, cell._replace(T=2), warming=True):
        del row
    return []


def _timed(place: Place, cell: GridPoint, warming: bool = False) -> Iterator[dict]:
    with place.math(cell.math):
        torch.manual_seed(0)
        their = theirs(cell, place)
        our = ours(their, cell, place)
        for training in (False, True):
            mode = "training" if training else "inference"
            x = input_of(cell, place, training)
            with fastlstm.backend("triton"):
                plain = call_of(our, x, mode)

            def call(plain: measure.Run = plain) -> Any:
                with fastlstm.backend("triton"):
                    return plain()

            calls = {"torch": call_of(their, x, mode), "triton": call}
            off = far(calls["triton"](), calls["torch"]())
            plan = fastlstm.dispatch.last_plan()
            if warming:
                continue
            seconds, often = measure.in_turns(place, calls)
            row = {
                **cell.columns,
                "training": training,
                "graph": False,
                "off": off,
                "wrong": not off <= 3 * ALLOWED[cell.math],
            }
            yield {**row, "plan": plan[:120], "seconds": seconds, "repeats": often}
