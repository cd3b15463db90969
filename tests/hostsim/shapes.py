"""Ways to spread a kernel over blocks and warps which together reach every branch of the kernels, and runs of the op on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.ops.arguments import OpInputs
from fastlstm.testing import accuracy
from fastlstm.testing.cases import Case, make
from tests.hostsim import backend as hostsim

F32, TF32, F16, BF16 = "float32", "tf32", "float16", "bfloat16"
MATHS = (F32, TF32, F16, BF16)  # how numbers are multiplied
SMS = 8  # of the fake device


def dtype_of(math: str) -> torch.dtype:
    return torch.float32 if math == TF32 else getattr(torch, math)


@dataclass(frozen=True)
class Shape:
    """A wish: the numbers of a Tiling (csrc/cuda/args.h), made to fit a case by `tiling`."""

    kernel: str
    groups: int = 1
    k_splits: int = 1
    row_tiles: int = 1
    phase: int = 1
    gate_splits: int = 1

    def tiling(self, H: int, B: int, backward: bool) -> tuple[int, ...]:
        """The Tiling nearest to the wish that covers H units and B sequences on SMS multiprocessors."""
        if self.kernel == "lean":
            return self._lean(H, B, backward)
        units, of_call = (16 if backward else 8), max(1, -(-B // 8))
        groups = -(-H // units) if self.kernel == "single_block" else self.groups
        parts = self.gate_splits if backward and self.kernel == "cooperative" else 1
        row_tiles = min(self.row_tiles, of_call)
        while self.kernel == "cooperative" and -(-H // (units * groups)) * parts * -(-of_call // row_tiles) > SMS:
            if row_tiles < min(of_call, 4):
                row_tiles += 1
            elif units * groups < H:
                groups += 1 if parts == 1 else parts
            else:
                row_tiles += 1
        splits = max(1, min(self.k_splits, 16 // groups))
        phase = min(self.phase, row_tiles) if splits > 1 else 1
        blocks = -(-H // (units * groups)) * parts
        return blocks, -(-of_call // row_tiles), groups, splits, row_tiles, phase, parts

    def _lean(self, H: int, B: int, backward: bool) -> tuple[int, ...]:
        """Of `lean`, whose row tiles are whole passes of `phase` tiles; the device has as many multiprocessors as that takes."""
        phase, groups, parts = (1, self.gate_splits, self.gate_splits) if backward else (self.phase, self.groups, 1)
        row_tiles = phase * max(1, self.row_tiles // phase)
        blocks = -(-H // ((16 if backward else 8) * groups)) * parts
        return blocks, max(1, -(-B // (8 * row_tiles))), groups, 8, row_tiles, phase, parts


SINGLE_BLOCK = (
    Shape("single_block"),
    Shape("single_block", k_splits=2, row_tiles=2, phase=2),
    Shape("single_block", row_tiles=3),
    Shape("single_block", k_splits=4, row_tiles=3, phase=2),  # a last phase that is not full; more warps than tiles
)
COOPERATIVE = (
    Shape("cooperative"),
    Shape("cooperative", groups=2, k_splits=2, row_tiles=2, phase=2, gate_splits=2),
    Shape("cooperative", groups=3, row_tiles=2),
    Shape("cooperative", k_splits=4, row_tiles=3, phase=2, gate_splits=2),
    Shape("cooperative", groups=2, k_splits=1, gate_splits=4),
    Shape("cooperative", groups=2, gate_splits=2),  # a warp goes from one column set to the next
    Shape("cooperative", k_splits=4),  # four warps share out a tile's cells
)
LEAN = (
    Shape("lean"),
    Shape("lean", groups=2, row_tiles=2, phase=2, gate_splits=4),
    Shape("lean", groups=2, row_tiles=3, gate_splits=4),  # three passes
    Shape("lean", row_tiles=4),
    Shape("lean", groups=2, row_tiles=4, phase=2),  # two passes of two tiles
)
PER_STEP = Shape("per_step")


def fits(shape: Shape, case: Case, math: str) -> bool:
    """Whether the planner's limits let a case run on a shape (`single_block` needs all of W_hh in one block)."""
    if case.projection and shape.kernel != "per_step":
        return False
    try:
        plan_of(shape, case, math)
    except ValueError:
        return False
    return True


def settings(shape: Shape, case: Case, math: str, seed: int, **other):
    """The hostsim settings under which a case runs on a shape."""
    forced = {}
    if shape.kernel != "per_step":
        forced = {
            "forward": shape.tiling(case.H, case.B, False),
            "backward": shape.tiling(case.H, case.B, True),
        }
    sms = max([SMS, *(t[0] * t[1] for t in forced.values())]) if shape.kernel == "lean" else SMS
    return hostsim.settings(
        kernel=shape.kernel, sms=sms, shared_kib=227, seed=seed, tf32=math == TF32, **forced, **other
    )


def check(shape: Shape, case: Case, math: str, seed: int, *, save: int = 1, **other) -> None:
    """Run forward and backward and judge all that they return by the rule of accuracy."""
    with settings(shape, case, math, seed, **other):
        accuracy.check_backend(hostsim.BACKEND, case, dtype_of(math), save=save, tf32=math == TF32)


def plan_of(shape: Shape, case: Case, math: str) -> cuda_launch.LaunchPlan:
    """The Plan of a case on a shape; ValueError where it does not fit."""
    inputs = OpInputs(*make(case, dtype_of(math)), case.reverse, 1)
    with settings(shape, case, math, 0):
        return hostsim.choose(inputs.spec(), hostsim.library().plan)


def dense(T: int, B: int, H: int, **options) -> Case:
    """A case by its sizes."""
    return Case(id=f"T{T}B{B}H{H}" + "".join(f"-{name}" for name in options), T=T, B=B, I=3, H=H, P=H, **options)
