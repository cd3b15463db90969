"""Asks the planner (csrc/cuda/plan.h) about a GPU, real or made up, and puts its answers into words.

    choices(lib, gpu_model.KNOWN["H100"], code, H=768, B=16)

`lib` is `fastlstm._C.plan` or the simulation's; the GPU needs not be there. Times are predictions of its cost model
(csrc/cuda/cost_model.h). `code` is that of the type (csrc/cuda/args.h).
"""

from __future__ import annotations

from typing import Any

from fastlstm import gpu_model
from fastlstm.gpu_model import Device

__all__ = ["choices", "gpu", "sentence", "tilings"]


def gpu(lib: Any, device: Device) -> Any:
    """The planner's description of a device."""
    return gpu_model.description(device, lib)


def choices(lib: Any, device: Device, code: int, *, H: int, B: int, projected: bool = False, only: str = "") -> tuple:
    """The planner's choices for forward and backward.

    only: step, tile or persistent. Raises ValueError with the reason where `only` cannot run.
    """
    found = tuple(lib.choose(gpu(lib, device), code, H, B, backward, projected, only) for backward in (False, True))
    for choice in found:
        if choice.blocks < 0:
            raise ValueError(choice.why)
    return found


def tilings(lib: Any, device: Device, code: int, *, H: int, B: int, backward: bool) -> list:
    """Every choice of `tile` and `persistent` that fits, the cheapest first."""
    return lib.tilings(gpu(lib, device), code, H, B, backward)


def sentence(choice: Any, device: Device) -> str:
    """Kernel, tiles, registers, shared memory, blocks, predicted microseconds of a step, what bounds it, and why."""
    how = f"{choice.us:.2f} µs a step predicted on {device.name}, bound by {choice.bound}; {choice.why}"
    if choice.kernel == "step":
        return f"step: {how}"
    t = choice.t
    tiles = f"{t.groups} groups x {t.k_splits} warps, {t.row_tiles} tiles of 8 sequences in phases of {t.phase}"
    parts = f", gates in {t.gate_splits} parts" if t.gate_splits > 1 else ""
    size = f"{choice.blocks} blocks of {choice.threads} threads and {choice.shared_bytes / 1024:.1f} KiB"
    return f"{choice.kernel}: {size} ({t.unit_blocks} over units x {t.row_blocks} over rows; {tiles}{parts}); {how}"
