"""Writes docs/gpu-model.md: what a time step is predicted to cost on GPUs, and how the model fits published timings.

    python -m tools.gpu_model

Everything comes from the cost model and the planner (csrc/cuda/cost_model.h, plan.h); no GPU is involved.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastlstm.backends import cost_model
from fastlstm.backends.cost_model import Device
from fastlstm.backends.cuda import planner as cuda_planner
from tools import gpu_lean, gpu_published, gpu_rounds
from tools.gpu_fit import compare
from tools.gpu_fit.constants import CostConstants
from tools.gpu_rounds import BATCHES, UNITS
from tools.gpu_tables import CODES, markdown

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "gpu-model.md"
DEVICES = ("A100", "H100", "RTX 4090")
TYPES = ("bfloat16", "float32")
HEAD = """# What a step on a GPU is predicted to cost

**These are predictions**, written by `python -m tools.gpu_model`. `fastlstm doctor --verify` measures on a GPU that is
there, and only that decides what runs.

The model (`csrc/cuda/cost_model.h`) counts what one time step reads, multiplies, issues and waits for; a predicted time
is a sum of those counts, each times a constant (`csrc/cuda/cost_constants.h`). The planner ranks tilings with it. A constant
is a weight fitted to whole steps, not the time of one thing alone; microbenchmarks stand beside them where there are any.
"""
PUBLISHED = """## How it fits published timings

One forward step of others' kernels on an H100 SXM, batch 16, 1024 steps (FlashRNN, arXiv 2412.07752), by the same model
with the constants that were guessed before anything was measured (`LEAN` in `tools/gpu_published.py`): those above describe
this project's kernels, which issue more instructions a step. The test suite holds every residual to a factor of 1.5. How
many grid-wide waits FlashRNN's and cuDNN's kernels have (two, one) and that haste launches two kernels a step is read from
their descriptions and sources.
"""
CUDA = """## The CUDA kernels

Microseconds of one step: kernel (P per_step, S single_block, C cooperative, L lean), forward / backward, in brackets the
floor that no kernel can pass forward: the step's products at peak rate, its activations through HBM, W_hh read once from
the chip. With P, every step pays two launches from Python; inside a CUDA graph they cost about a third of that.
"""
ROUNDS = """## Rounds through L2 that wait for each other

On an H100, of a step forward and backward: those of the planner's pick / the fewest that any fitting tiling has. P: two
launches a step are predicted to be cheaper than any tiling; a dash: none fits. Picks with more than twice the fewest are
listed below with the reason. A pass of a block of lean counts as one round, or two where parts of dh travel too.
"""


def constants(cost: CostConstants = ()) -> str:
    """The model's constants; cost: those that are not the built-in ones."""
    overrides, lines = dict(cost), []
    for name, value, part, meaning in cost_model.library().constants():
        lines.append((name, f"{overrides.get(name, value):.4g}", part, meaning))
    return markdown(("constant", "value", "part of a prediction", "meaning"), lines)


def devices() -> str:
    """What the model knows of GPUs."""
    head = ("device", "sm", "SMs", "GHz", "HBM GB/s", "L2 GB/s", "shared KiB", "fp32", "half", "TF32")
    lines = []
    for d in cost_model.KNOWN.values():
        products = [f"{rate:.0f}" if rate else "-" for rate in (d.fma, d.half, d.tf32)]
        rates = [f"{rate:g}" for rate in (d.ghz, d.hbm_gbs, d.l2_gbs)]
        lines.append((d.name, d.capability, d.sms, *rates, d.shared_kib, *products))
    return markdown(head, lines) + "\nThe last three: multiply-adds of one SM in a clock.\n"


def residuals() -> str:
    """Published timings beside the model's."""
    lines = [(what, us, f"{predicted:.2f}", f"{ratio:.2f}") for what, us, predicted, ratio in gpu_published.residuals()]
    return markdown(("kernel", "published µs", "model µs", "model / published"), lines)


def floor(device: Device, H: int, B: int, code: int) -> float:
    """Return the microseconds that no forward step can beat. code: of the type (csrc/cuda/args.h).

    The largest of: its products at peak rate, its activations through HBM, W_hh read once from the chip.
    """
    return cost_model.library().floor_us(cost_model.description(device), code, H, B)


def cell(device: Device, math: str, H: int, B: int) -> str:
    """What the planner picks and predicts, and the floor."""
    ahead, back = cuda_planner.choices(cost_model.library(), device, CODES[math], H=H, B=B)
    letters = "".join(dict.fromkeys(choice.kernel[0].upper() for choice in (ahead, back)))
    return f"{letters} {ahead.us:.2f} / {back.us:.2f} ({floor(device, H, B, CODES[math]):.2f})"


def table(math: str, cost: CostConstants = ()) -> str:
    """All devices, hidden sizes and batch sizes in one type."""
    lines = []
    for name in DEVICES:
        device = replace(cost_model.KNOWN[name], cost=cost)
        lines += [(name, H, *(cell(device, math, H, B) for B in BATCHES)) for H in UNITS]
    return markdown((math, "H", *(f"B {B}" for B in BATCHES)), lines)


def render(cost: CostConstants = ()) -> str:
    """The page. cost: constants that are not the built-in ones."""
    parts = [HEAD, "## Constants\n", constants(cost), devices(), PUBLISHED, residuals(), CUDA]
    parts += [table(math, cost) for math in TYPES]
    parts += gpu_lean.sections(cost)
    parts += compare.sections(cost)
    parts += [ROUNDS, gpu_rounds.tables(replace(cost_model.KNOWN["H100"], cost=cost))]
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
