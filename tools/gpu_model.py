"""Writes docs/gpu-model.md: what a time step is predicted to cost on GPUs, and how the model fits published timings.

    python -m tools.gpu_model

Everything comes from fastlstm/gpu_model.py and the two planners; no GPU is involved and nothing in it was measured here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from fastlstm import gpu_model, native
from fastlstm.backends import cuda_plan
from fastlstm.backends.triton import planner
from tools.gpu_tables import CODES, markdown

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "gpu-model.md"
DEVICES = ("A100", "H100", "RTX 4090")
UNITS = (128, 256, 512, 768, 1024, 1536)
BATCHES = (1, 16, 64, 128)
TYPES = {"bfloat16": (2, "half", "half"), "float32": (4, "fma", "ieee")}  # bytes, rate, how Triton multiplies
SHAPES = {"resident": "R", "streamed": "T", "step": "S"}
HEAD = """# What a step on a GPU is predicted to cost

**These are predictions.** Nothing on this page was measured by this project; it was written without a GPU, by
`python -m tools.gpu_model`. `fastlstm doctor --verify` measures on a GPU that is there, and only that decides what runs.

The model (`fastlstm/gpu_model.py`) counts what one time step reads, multiplies and waits for, against what the device can
do. The planners rank candidates with it.
"""
PUBLISHED = """## How it fits published timings

One set of constants, for one forward step on an H100 SXM, batch 16, 1024 steps (FlashRNN, arXiv 2412.07752). The test
suite holds every residual to a factor of 1.5. How many grid-wide waits FlashRNN's and cuDNN's kernels have (two, one) and
that haste launches two kernels a step is read from their descriptions and sources.
"""
CUDA = """## The CUDA kernels

Microseconds of one step: kernel (T tile, P persistent, S step), forward / backward, in brackets the floor that no
kernel can pass forward: the step's products at peak rate, its activations through HBM, W_hh read once from the chip.
With S, every step pays two launches from Python; inside a CUDA graph they cost about a third of that.
"""
TRITON = """## The Triton kernels

The same for its shapes (R resident, T streamed, S step), forward only.
"""


def constants() -> list[tuple[str, str, str]]:
    """(name, value, meaning) of the model's constants, as its source states them."""
    source = inspect.getsource(gpu_model)
    return re.findall(r"^([A-Z][A-Z0-9_]+) = ([\d.]+)  # (.*)$", source, re.M)


def devices() -> str:
    """What the model knows of GPUs."""
    head = ("device", "sm", "SMs", "GHz", "HBM GB/s", "L2 GB/s", "shared KiB", "fp32", "half", "TF32")
    lines = [
        (d.name, d.capability, d.sms, d.ghz, d.hbm_gbs, d.l2_gbs, d.shared_kib, d.fma, d.half, d.tf32 or "-")
        for d in gpu_model.KNOWN.values()
    ]
    return markdown(head, lines) + "\nThe last three: multiply-adds of one SM in a clock.\n"


def residuals() -> str:
    """Published timings beside the model's."""
    lines = [(what, us, f"{mine:.2f}", f"{ratio:.2f}") for what, us, mine, ratio in gpu_model.residuals()]
    return markdown(("kernel", "published µs", "model µs", "model / published"), lines)


def cuda_cell(device: gpu_model.Device, math: str, H: int, B: int) -> str:
    """What the CUDA planner picks and predicts."""
    ahead, back = cuda_plan.choices(native.load().plan, device, CODES[math], H=H, B=B)
    letters = "".join(dict.fromkeys(choice.kernel[0].upper() for choice in (ahead, back)))
    return f"{letters} {ahead.us:.2f} / {back.us:.2f}"


def triton_cell(device: gpu_model.Device, math: str, H: int, B: int) -> str:
    """What the Triton planner picks and predicts."""
    plan = planner.choose(device, H, B, TYPES[math][2])
    if not isinstance(plan, planner.Plan):
        return "none"
    return f"{SHAPES[plan.shape]} {plan.us:.2f}"


def table(cell: Callable[[gpu_model.Device, str, int, int], str], math: str) -> str:
    """All devices, hidden sizes and batch sizes in one type."""
    itemsize, rate, _ = TYPES[math]
    lines = []
    for name in DEVICES:
        device = gpu_model.KNOWN[name]
        for H in UNITS:
            floors = (gpu_model.floor(device, H, B, itemsize, rate) for B in BATCHES)
            cells = (f"{cell(device, math, H, B)} ({low:.2f})" for B, low in zip(BATCHES, floors, strict=True))
            lines.append((name, H, *cells))
    return markdown((math, "H", *(f"B {B}" for B in BATCHES)), lines)


def render() -> str:
    """The page."""
    parts = [HEAD, "## Constants\n", markdown(("constant", "value", "meaning"), constants()), devices()]
    parts += [PUBLISHED, residuals(), CUDA]
    parts += [table(cuda_cell, math) for math in TYPES]
    parts.append(TRITON)
    parts += [table(triton_cell, math) for math in TYPES]
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
