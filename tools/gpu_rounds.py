"""How many rounds through L2 a step of the planner's picks waits for, beside the fewest that any fitting tiling has.

A round is what a lane loads together (csrc/cuda/layout.h, kLoadsInFlight), of `lean` all that it loads in a pass; rounds
wait for each other, so a pick with many is slow whatever its throughputs say. docs/gpu-model.md has the tables, the
tests hold picks to twice the fewest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastlstm.backends import cost_model
from fastlstm.backends.cost_model import Device
from fastlstm.backends.cuda import planner as cuda_planner
from tools.gpu_tables import CODES, markdown

UNITS = (128, 256, 512, 768, 1024, 1536)
BATCHES = (1, 16, 64, 128)
TYPES = ("bfloat16", "tf32", "float32")  # float16 is planned as bfloat16 is
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class RoundsRow:
    """A call of the committed list: the planner's pick, and the tiling with the fewest rounds, if any fits."""

    math: str
    H: int
    B: int
    direction: str
    pick: Any
    fewest: Any

    @property
    def within(self) -> bool:
        """Whether the pick has at most twice the fewest rounds."""
        return self.fewest is None or rounds_of(self.pick) <= 2 * rounds_of(self.fewest)

    @property
    def reason(self) -> str:
        """Why the pick has more rounds than the tiling with the fewest."""
        other = self.fewest
        rounds = f"{rounds_of(other):.0f} has {name(other)}"
        return f"{rounds}: {other.us:.2f} µs predicted, the pick {self.pick.us:.2f}"


def rounds_of(choice: Any) -> float:
    """Rounds through L2 of a step; of `lean` its gathers, in each pass of a block."""
    return choice.work.l2_rounds + choice.work.gathers * (choice.t.row_tiles / max(1, choice.t.phase))


def rows(device: Device) -> Iterator[RoundsRow]:
    """Every call of the committed list on a device."""
    lib = cost_model.library()
    for math in TYPES:
        for H in UNITS:
            for B in BATCHES:
                picks = cuda_planner.choices(lib, device, CODES[math], H=H, B=B)
                for backward, direction in enumerate(DIRECTIONS):
                    fitting = cuda_planner.tilings(lib, device, CODES[math], H=H, B=B, backward=bool(backward))
                    fewest = min(fitting, key=lambda c: (rounds_of(c), c.us), default=None)
                    yield RoundsRow(math, H, B, direction, picks[backward], fewest)


def name(choice: Any) -> str:
    """A kernel with its tiling, short: cooperative 64x2 blocks of 2x4 warps, 1 row tile."""
    t = choice.t
    if choice.kernel == "per_step":
        return "per_step"
    parts = f", {t.gate_splits} parts" if t.gate_splits > 1 else ""
    tiles = f"{t.row_tiles} row tile{'s' * (t.row_tiles > 1)}"
    warps = f"{t.k_splits} warps, groups {t.groups}" if choice.kernel == "lean" else f"{t.groups}x{t.k_splits} warps"
    return f"{choice.kernel} {t.unit_blocks}x{t.row_blocks} blocks of {warps}, {tiles}{parts}"


def tables(device: Device) -> str:
    """Rounds of all picks, and the picks that have more than twice the fewest with the reason."""
    by_call = {(r.math, r.H, r.B, r.direction): r for r in rows(device)}
    lines = []
    for math in TYPES:
        for H in UNITS:
            pairs = (" ".join(_cell(by_call[math, H, B, direction]) for direction in DIRECTIONS) for B in BATCHES)
            lines.append((math, H, *pairs))
    parts = [markdown(("type", "H", *(f"B {B}" for B in BATCHES)), lines)]
    beyond = [(r.H, r.B, r.math, r.direction, name(r.pick), f"{rounds_of(r.pick):.0f}", r.reason)
              for r in by_call.values() if not r.within]  # fmt: skip
    if beyond:
        parts.append(markdown(("H", "B", "type", "direction", "pick", "rounds", "why not fewer"), beyond))
    return "\n".join(parts)


def _cell(row: RoundsRow) -> str:
    if row.fewest is None:
        return "-"
    pick = "P" if row.pick.kernel == "per_step" else f"{rounds_of(row.pick):.0f}"
    return f"{pick}/{rounds_of(row.fewest):.0f}"
