"""Ways to spread a kernel over blocks and warps which together reach every branch of the kernels, and runs of the op on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from fastlstm.ops import reference
from fastlstm.ops.arguments import OpInputs, Saved
from fastlstm.testing import accuracy
from fastlstm.testing.cases import Case, make, make_grads
from tests.hostsim import backend as hostsim

F32, TF32, F16, BF16 = "float32", "tf32", "float16", "bfloat16"
MATHS = (F32, TF32, F16, BF16)  # how numbers are multiplied
LEAN_MATHS = (TF32, F16, BF16)  # of the kernel `lean`
SMS = 8  # of the fake device; `lean` gets as many as it has blocks
LEAN_BLOCKS = 64  # of 256 threads: the simulation has room for the stacks of 16,384


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


def _blocks(tiling: tuple[int, ...]) -> int:
    return tiling[0] * tiling[1]


def fits(shape: Shape, case: Case, math: str, **other) -> bool:
    """Whether the planner's limits let a case run on a shape (`single_block` needs all of W_hh in one block).

    other: further settings, such as flags, which say which instances of `lean` there are.
    """
    if case.projection and shape.kernel != "per_step":
        return False
    if (
        shape.kernel == "lean"
        and max(_blocks(shape.tiling(case.H, case.B, way)) for way in (False, True)) > LEAN_BLOCKS
    ):
        return False
    try:
        plan_of(shape, case, math, **other)
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
    sms = max([SMS, *map(_blocks, forced.values())]) if shape.kernel == "lean" else SMS
    return hostsim.settings(
        kernel=shape.kernel, sms=sms, shared_kib=227, seed=seed, tf32=math == TF32, **forced, **other
    )


def check(shape: Shape, case: Case, math: str, seed: int, *, save: int = 1, **other) -> None:
    """Run forward and backward and judge all that they return by the rule of accuracy."""
    with settings(shape, case, math, seed, **other):
        accuracy.check_backend(hostsim.BACKEND, case, dtype_of(math), save=save, tf32=math == TF32)


def check_bias(shape: Shape, case: Case, math: str, seed: int, **other) -> None:
    """Run backward and compare the sums of the gates' gradients, which `lean` adds to `bias`, with those it returns."""
    dtype = dtype_of(math)
    v, grads, plan = make(case, dtype), make_grads(case, dtype), plan_of(shape, case, math, **other)
    saved = Saved(*reference.forward(*v, case.reverse, 1)[:3])
    t = plan.backward.t
    with settings(shape, case, math, seed, **other), hostsim.simulated() as rt:
        bias = torch.ones(t.row_blocks, 4 * case.H)
        d_gates, *_ = launch_backward.backward(rt, plan, OpInputs(*v, case.reverse, 1), saved, grads, bias)
    rows = d_gates.view(-1, 4 * case.H).double()
    lengths = case.batch_sizes.tolist() if case.packed else [case.B] * case.T
    of_row = torch.cat([torch.arange(n) for n in lengths]) // (8 * t.row_tiles)  # the row block of each row
    for block in range(t.row_blocks):
        mine = rows[of_row == block]
        expected, scale = mine.sum(0) + 1, mine.abs().sum(0) + 1
        wrong = (bias[block] - expected).abs() > 2 * torch.finfo(dtype).eps * scale  # d_gates is rounded, bias is not
        assert not wrong.any(), f"bias of row block {block} differs in {wrong.nonzero().flatten().tolist()[:8]}"


def plan_of(shape: Shape, case: Case, math: str, **other) -> cuda_launch.LaunchPlan:
    """The Plan of a case on a shape; ValueError where it does not fit."""
    inputs = OpInputs(*make(case, dtype_of(math)), case.reverse, 1)
    with settings(shape, case, math, 0, **other):
        return hostsim.choose(inputs.spec(), hostsim.simulated().module.plan)


def dense(T: int, B: int, H: int, **options) -> Case:
    """A case by its sizes."""
    wide = {"I": 0, "V": 5} if options.get("ids") else {"I": 3}
    return Case(id=f"T{T}B{B}H{H}" + "".join(f"-{name}" for name in options), T=T, B=B, H=H, P=H, **wide, **options)


def packed(lengths: tuple[int, ...], H: int, **options) -> Case:
    """A packed case by the lengths of its sequences."""
    case = dense(max(lengths), len(lengths), H, **options)
    return replace(case, id=f"{case.id}-packed", lengths=lengths)


_EVEN = {1: 40, 3: 8, 5: 16, 7: 24, 65: 72, 129: 136}


def even(case: Case) -> Case:
    """The case with a width that `lean` takes and without a projection, which it does not."""
    H = _EVEN.get(case.H, -(-case.H // 8) * 8)
    return replace(case, id=f"{case.id}-even", H=H, P=H, projection=False)
