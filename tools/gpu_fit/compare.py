"""Predictions beside measurements, for docs/gpu-model.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastlstm.backends import cost_model
from fastlstm.backends.cuda import planner as cuda_planner
from fastlstm.backends.cuda.status import KERNELS
from tools.gpu_fit import committed, evaluation, sweep
from tools.gpu_fit.constants import CostConstants
from tools.gpu_fit.sweep import CODES, TILING, MeasuredStep
from tools.gpu_tables import markdown

HEAD = """## Predicted and measured on {card}

Microseconds of a step of the kernel alone: the planner's pick, predicted / measured / the fastest tiling that was
measured. A dash: this tiling was not measured. A kernel of which nothing was measured is not picked here: {without}.
docs/gpu-measured.md has the rest.
"""
RESIDUALS = """Predicted over measured, all tilings: the median, and in brackets the middle 80 %.
"""
ALONE = """### Constants beside microbenchmarks on {card}

The constants are weights, fitted together to whole steps: a weight holds everything that grows with its count, waiting
included, and what two counts share may stand in either. What the things that they are named after take alone is less:
"""
MEASURED = (
    ("l2_clocks", "l2_load_clocks", "one strong load from L2"),
    ("grid_wait_us", "hand_over_clocks", "from a store to where another block has loaded it"),
    ("barrier_clocks", "barrier_clocks", "a block barrier, 4 to 16 warps"),
    ("forward_cell_clocks", "cell_clocks", "gates to h of one unit a thread, 4 to 16 warps"),
)


def sections(cost: CostConstants = ()) -> list[str]:
    """A section for every card whose rows are kept. cost: constants that are not the built-in ones."""
    parts = []
    for card, rows in committed.files().items():
        steps = sweep.steps(rows, sweep.device(rows))
        if steps:
            unmeasured = ", ".join(sorted(_unmeasured(steps))) or "there is none"
            parts += [HEAD.format(card=card, without=unmeasured), *(table(steps, back, cost) for back in (False, True))]
            parts += [RESIDUALS, _residuals(steps, cost)]
        if alone := _alone(rows):
            parts += [ALONE.format(card=card), alone]
    return parts


def _unmeasured(steps: Sequence[MeasuredStep]) -> frozenset[str]:
    """The recurrent kernels of which no step was measured."""
    return frozenset(KERNELS) - {"per_step", "decode"} - {step.kernel for step in steps}  # decode has no step of the op


def _residuals(steps: Sequence[MeasuredStep], cost: CostConstants) -> str:
    values = np.array(list({**sweep.constants(), **dict(cost)}.values()))
    predicted = sweep.predict(*sweep.counts(steps), values)
    table = evaluation.residuals(steps, **{"predicted / measured": predicted})
    return f"{table}\nThe planner's picks among what was measured: {evaluation.loss(steps, predicted)}.\n"


def _alone(rows: Sequence[dict]) -> str:
    """What the microbenchmarks found for the things that constants are named after: the least and the most."""
    lines = []
    for constant, column, what in MEASURED:
        values = [row[column] for row in rows if row["stage"] == "ubench" and column in row]
        values = [v for value in values for v in (value.values() if isinstance(value, dict) else (value,))]
        if values:
            lines.append((constant, what, f"{min(values):g} … {max(values):g}"))
    return markdown(("constant", "measured alone", "clocks"), lines) if lines else ""


def table(steps: Sequence[MeasuredStep], backward: bool, cost: CostConstants) -> str:
    """One direction: types and hidden sizes down, batch sizes across."""
    of_direction = [step for step in steps if step.backward == backward]
    batches, lines = sorted({step.B for step in of_direction}), []
    for math, H in sorted({(step.math, step.H) for step in of_direction}):
        cells = ([s for s in of_direction if (s.math, s.H, s.B) == (math, H, B)] for B in batches)
        lines.append((math, H, *(_cell(cell_steps, cost, _unmeasured(steps)) for cell_steps in cells)))
    head = ("backward" if backward else "forward", "H", *(f"B {B}" for B in batches))
    return markdown(head, lines)


def _cell(steps: Sequence[MeasuredStep], cost: CostConstants, without: frozenset[str]) -> str:
    if not steps:
        return ""
    one = steps[0]
    device = replace(one.device, cost=cost)
    call = {"H": one.H, "B": one.B, "without": without}
    pick = cuda_planner.choices(cost_model.library(), device, CODES[one.math], **call)[one.backward]
    tiling = tuple(getattr(pick.t, name) for name in TILING)
    measured = next((f"{s.us:.2f}" for s in steps if (s.kernel, s.tiling) == (pick.kernel, tiling)), "-")
    return f"{pick.us:.2f} / {measured} / {min(step.us for step in steps):.2f}"
