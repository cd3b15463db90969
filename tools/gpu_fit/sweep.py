"""Measured steps of single tilings (rows of the stage `sweep`), and what the cost model counts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.backends import cost_model
from fastlstm.backends.cost_model import Device

CODES = {"f32": 0, "tf32": 1, "f16": 2, "bf16": 3}  # csrc/cuda/args.h
TILING = ("unit_blocks", "row_blocks", "groups", "k_splits", "row_tiles", "phase", "gate_splits")
OVERLAPPING = 3  # parts of a prediction: the first three overlap, the others add up (csrc/cuda/cost_model.h)


@dataclass(frozen=True)
class MeasuredStep:
    """One tiling of a call, and the microseconds of a step that were measured."""

    math: str
    H: int
    B: int
    backward: bool
    kernel: str
    tiling: tuple[int, ...]
    us: float
    planned: bool  # it was the planner's pick then
    device: Device
    choice: Any  # what the planner says of it now

    @property
    def call(self) -> tuple:
        """What is computed, however it is tiled."""
        return self.device.name, self.math, self.H, self.B, self.backward


def device(rows: Sequence[dict]) -> Device:
    """The GPU that the rows of one file were measured on; raises ValueError where they do not say."""
    about: dict = {}
    for row in rows:
        if row["stage"] == "env":
            about |= row
    if "gpu" not in about:
        raise ValueError("no row of the stage env names the GPU; give the file as benchmarks.gpu_day wrote it")
    gpu, properties = about["gpu"], about.get("properties")
    if not properties:
        alike = next((d for d in cost_model.KNOWN.values() if d.name in gpu), cost_model.KNOWN["H100"])
        properties = (alike.capability, alike.sms, alike.shared_bytes)
    return cost_model.known(gpu, *properties)


def steps(rows: Sequence[dict], on: Device) -> list[MeasuredStep]:
    """The steps that can be used: right, status 0, a time, and a tiling that the planner knows today."""
    lib, usable = cost_model.library(), []
    gpu = cost_model.description(on, lib)
    for row in rows:
        if row["stage"] != "sweep" or row.get("status") != 0 or row.get("wrong") or row.get("slow"):
            continue
        if not (row.get("us") or 0) > 0:
            continue
        tiling = tuple(int(row["tiling"][name]) for name in TILING)
        try:
            args = (CODES[row["math"]], row["H"], row["B"], row["backward"], row["kernel"])
            choice = lib.fit(gpu, *args, _native(lib, tiling))
        except ValueError:
            continue
        what = (row["math"], row["H"], row["B"], row["backward"], row["kernel"], tiling)
        usable.append(MeasuredStep(*what, row["us"], bool(row.get("planner")), on, choice))
    return usable


def _native(lib: Any, values: Sequence[int]) -> Any:
    tiling = lib.Tiling()
    for name, value in zip(TILING, values, strict=True):
        setattr(tiling, name, value)
    return tiling


def least() -> np.ndarray:
    """The smallest value of each constant: nothing is faster than shared memory's and the products' peak rates."""
    return np.array([1.0 if name in ("shared_excess", "product_excess") else 0.0 for name in constants()])


def constants() -> dict[str, float]:
    """The cost model's constants as they are built in, by name."""
    return {name: value for name, value, *_ in cost_model.library().constants()}


def counts(measured: Sequence[MeasuredStep]) -> tuple[np.ndarray, np.ndarray]:
    """What a constant of 1 costs, in microseconds: a row a step, a column a constant; and the time through HBM.

    A prediction is max(the first three columns times their constants) + the sum of the others, and at least HBM's.
    """
    lib, ones = cost_model.library(), tuple((name, 1.0) for name in constants())
    described: dict[Device, Any] = {}
    table = np.zeros((len(measured), len(ones) + 1))
    for line, step in zip(table, measured, strict=True):
        gpu = described.setdefault(step.device, cost_model.description(replace(step.device, cost=ones), lib))
        line[:] = list(lib.predict(gpu, CODES[step.math], step.choice.work).parts.values())
    return table[:, :-1], table[:, -1]


def predict(table: np.ndarray, hbm: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Microseconds of every step with these constants, as csrc/cuda/cost_model.cpp adds them up."""
    parts = table * values
    return np.maximum(parts[:, :OVERLAPPING].max(1) + parts[:, OVERLAPPING:].sum(1), hbm)
