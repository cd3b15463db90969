"""The variants of Triton's kernels that are compiled and listed in docs/gpu-resources.md: all that the planner picks."""

from __future__ import annotations

from collections.abc import Iterator

from fastlstm.backends import cost_model
from fastlstm.backends.triton.planner import KERNELS, GpuLimits, Tile, TritonPlan, choose


def committed() -> Iterator[tuple[GpuLimits, int, int, str]]:
    """(device, H, B, math) of the list that the slow tests compile: every size class on every kind of device."""
    for name in ("A100", "H100", "RTX 3090", "RTX 4090", "B200", "RTX 5090"):
        known = cost_model.KNOWN[name]
        device = GpuLimits(name, known.capability, known.sms, known.shared_bytes)
        for math in ("half", "tf32", "ieee"):
            for H in (1, 16, 32, 60, 64, 96, 128, 200, 256, 512, 768, 1024, 1536):
                for B in (1, 16, 64, 128, 4096):
                    yield device, H, B, math


def describe(kernel: str, tile: Tile) -> str:
    """Return a tile as docs/gpu-resources.md has it: rows x units / terms of a block of the sum, warps, stages."""
    size = f"{tile.BM}x{tile.BN}" + ("" if kernel == "single_block" else f"/{tile.BK}")
    return f"{size} w{tile.warps} s{tile.stages}"


def variants(capability: int | None = None) -> list[tuple[str, str, Tile, str]]:
    """Every (kernel, math, tile, "forward" or "backward") that `choose` picks over `committed`, for one capability or all."""
    picked = {}
    for device, H, B, math in committed():
        if capability not in (None, device.capability):
            continue
        for kernel in ("", *KERNELS):
            plan = choose(device, H, B, math, only=kernel)
            if isinstance(plan, TritonPlan):
                picked[plan.kernel, math, plan.forward, "forward"] = None
                picked[plan.kernel, math, plan.backward, "backward"] = None
    return sorted(picked, key=lambda v: (v[1], KERNELS.index(v[0]), v[3], v[2].BN, v[2].BM))
