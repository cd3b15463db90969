"""Predictions beside measurements, for docs/gpu-model.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastlstm import gpu_model
from fastlstm.backends import cuda_plan
from tools.gpu_fit import kept, sweep
from tools.gpu_fit.sweep import CODES, TILING, Step
from tools.gpu_tables import markdown

HEAD = """## Predicted and measured on {card}

Microseconds of a step of the kernel alone: the planner's pick, predicted / measured / the fastest tiling that was
measured. A dash: this tiling was not measured. docs/gpu-measured.md has the rest.
"""


def sections(cost: tuple[tuple[str, float], ...] = ()) -> list[str]:
    """A section for every card whose rows are kept. cost: constants that are not the built-in ones."""
    parts = []
    for card, rows in kept.files().items():
        found = sweep.steps(rows, sweep.device(rows))
        if found:
            parts += [HEAD.format(card=card), *(table(found, back, cost) for back in (False, True))]
    return parts


def table(found: Sequence[Step], backward: bool, cost: tuple[tuple[str, float], ...]) -> str:
    """One direction: types and hidden sizes down, batch sizes across."""
    mine = [step for step in found if step.backward == backward]
    batches, lines = sorted({step.B for step in mine}), []
    for math, H in sorted({(step.math, step.H) for step in mine}):
        cells = ([s for s in mine if (s.math, s.H, s.B) == (math, H, B)] for B in batches)
        lines.append((math, H, *(_cell(steps, cost) for steps in cells)))
    head = ("backward" if backward else "forward", "H", *(f"B {B}" for B in batches))
    return markdown(head, lines)


def _cell(steps: Sequence[Step], cost: tuple[tuple[str, float], ...]) -> str:
    if not steps:
        return ""
    one = steps[0]
    device = replace(one.device, cost=cost)
    pick = cuda_plan.choices(gpu_model.library(), device, CODES[one.math], H=one.H, B=one.B)[one.backward]
    tiling = tuple(getattr(pick.t, name) for name in TILING)
    measured = next((f"{s.us:.2f}" for s in steps if (s.kernel, s.tiling) == (pick.kernel, tiling)), "-")
    return f"{pick.us:.2f} / {measured} / {min(step.us for step in steps):.2f}"
