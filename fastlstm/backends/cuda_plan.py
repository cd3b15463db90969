"""Asks the planner (csrc/cuda/plan.h) about a GPU, real or made up, and puts its answers into words.

    choices(lib, gpu_model.KNOWN["H100"], code, H=768, B=16)

`lib` is `fastlstm._C.plan` or the simulation's; the GPU needs not be there. Times are predictions of the cost model in
`fastlstm.gpu_model`, whose constants the planner gets from here.
"""

from __future__ import annotations

from typing import Any

from fastlstm import gpu_model
from fastlstm.gpu_model import Device

__all__ = ["choices", "gpu", "predicted", "sentence"]

_RATES = {0: "fma", 1: "tf32", 2: "half", 3: "half"}


def gpu(lib: Any, device: Device) -> Any:
    """The planner's description of a device."""
    g = lib.Gpu()
    g.capability, g.sms, g.shared_bytes = device.capability, device.sms, device.shared_bytes
    g.ghz, g.hbm_gbs, g.l2_gbs = device.ghz, device.hbm_gbs, device.l2_gbs
    g.fma, g.half, g.tf32 = device.fma, device.half, device.tf32
    g.barrier_clocks, g.l2_clocks = gpu_model.BARRIER_CLOCKS, gpu_model.L2_CLOCKS
    g.cell_clocks, g.efficiency = gpu_model.CELL_CLOCKS, gpu_model.EFFICIENCY
    g.launch_us, g.grid_wait_us = gpu_model.TORCH_LAUNCH_US, gpu_model.GRID_WAIT_US
    return g


def choices(lib: Any, device: Device, code: int, *, H: int, B: int, projected: bool = False, only: str = "") -> tuple:
    """The planner's choices for forward and backward.

    code: of the type (csrc/cuda/args.h); only: step, tile or persistent. Raises ValueError with the reason where `only`
    cannot run.
    """
    found = tuple(lib.choose(gpu(lib, device), code, H, B, backward, projected, only) for backward in (False, True))
    for choice in found:
        if choice.blocks < 0:
            raise ValueError(choice.why)
    return found


def predicted(choice: Any, device: Device, code: int) -> gpu_model.Prediction:
    """Microseconds of one step of a choice, part by part, by the cost model."""
    w = choice.work
    counts = {name: getattr(w, name) for name in ("l2_bytes", "shared_bytes", "products", "cells", "barriers")}
    chip = {name: getattr(w, name) for name in ("l2_rounds", "hbm_bytes", "launches", "grid_waits")}
    rate = _RATES[code]
    work = gpu_model.Work(w.blocks, rate=rate, launch_us=gpu_model.TORCH_LAUNCH_US, **counts, **chip)
    return gpu_model.predict(work, device)


def sentence(choice: Any, device: Device, code: int) -> str:
    """Kernel, tiles, registers, shared memory, blocks, predicted microseconds of a step, what bounds it, and why."""
    cost = predicted(choice, device, code)
    how = f"{cost.us:.2f} µs a step predicted on {device.name}, bound by {cost.bound}; {choice.why}"
    if choice.kernel == "step":
        return f"step: {how}"
    t = choice.t
    tiles = f"{t.groups} groups x {t.k_splits} warps, {t.row_tiles} tiles of 8 sequences in phases of {t.phase}"
    parts = f", gates in {t.gate_splits} parts" if t.gate_splits > 1 else ""
    size = f"{choice.blocks} blocks of {choice.threads} threads with 128 registers and {choice.shared_bytes / 1024:.1f} KiB"
    return f"{choice.kernel}: {size} ({t.unit_blocks} over units x {t.row_blocks} over rows; {tiles}{parts}); {how}"
