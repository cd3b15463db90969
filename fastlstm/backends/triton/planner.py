"""Which kernel and tile a call gets, in plain Python: no torch, no Triton, no GPU, so any device can be asked about.

A tile is chosen from a short list per kernel and way of multiplying; each entry of the list is compiled for every
architecture by tools/gpu_resources.py, which is where "no spills" comes from. Shared memory is compared with the device's
limit here, since Triton compiles past it. The rule, the first that fits:

    single_block  W_hh stays on one multiprocessor
    streamed      where W_hh has at most STREAMED_BYTES, which a block reads from L2 in about the time of one launch, and
                every block has a multiprocessor
    per_step      everything else; and streamed again where a tile of `per_step` does not fit

and of a kernel's tiles the one with the fewest rows that holds the batch, or whose blocks have a multiprocessor each. It
needs no cost model: that is part of the native module, without which this backend works.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

KERNELS = ("single_block", "streamed", "per_step")
MAX_WEIGHTS = 2**31  # offsets inside W_hh are 32-bit
STREAMED_BYTES = 512 << 10  # one multiprocessor takes about 40 KiB a microsecond from L2, a launch from Python 15 µs


@dataclass(frozen=True)
class GpuLimits:
    """What the planner knows of a GPU."""

    name: str
    capability: int  # 80 for 8.0
    sms: int
    shared_bytes: int  # that one block can ask for


@dataclass(frozen=True)
class Tile:
    """BM rows; BN units (single_block: all of them, padded to a power of two); BK terms of the sum per block of W_hh."""

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int


@dataclass(frozen=True)
class TritonPlan:
    """What runs: kernel, how operands are multiplied, the tiles of both directions, and why."""

    kernel: str
    math: str  # "half", "tf32" or "ieee"
    forward: Tile
    backward: Tile
    shared_bytes: int
    reasons: tuple[str, ...]

    @property
    def precision(self) -> str:
        """What tl.dot is told: tf32 or ieee (half types are multiplied exactly)."""
        return "tf32" if self.math == "tf32" else "ieee"

    def __str__(self) -> str:
        t = self.forward
        size = f"{t.BM} rows × {t.BN} units" + ("" if self.kernel == "single_block" else f", blocks of {t.BK}")
        return f"triton: {self.kernel} ({self.math}), {size}, {t.warps} warps, {t.stages} stages; {'; '.join(self.reasons)}"


# (padded H, warps): 4·HP² weights stay in shared memory
_SINGLE_BLOCK = {
    "half": ((16, 4), (32, 4), (64, 8), (128, 16)),
    "tf32": ((16, 4), (32, 8), (64, 8)),
    "ieee": ((16, 4), (32, 4), (64, 8)),
}
_ROWS = {"half": 16, "tf32": 16, "ieee": 4}  # the smallest batch tile: tensor cores take 16 rows at a time
# kernel → math → (forward, backward) tiles, larger batch tiles later
_TILED = {
    "streamed": {
        "half": (
            (Tile(16, 64, 64, 8, 3), Tile(16, 32, 128, 8, 3)),
            (Tile(32, 32, 64, 8, 3), Tile(32, 32, 128, 8, 3)),
        ),
        "tf32": ((Tile(16, 32, 32, 8, 3), Tile(16, 32, 128, 8, 3)),),
        "ieee": ((Tile(4, 32, 32, 4, 3), Tile(4, 32, 64, 4, 3)),),
    },
    "per_step": {
        "half": (
            (Tile(16, 16, 128, 4, 3), Tile(16, 16, 256, 4, 3)),
            (Tile(64, 32, 64, 8, 3), Tile(64, 32, 128, 8, 3)),
        ),
        "tf32": (
            (Tile(16, 16, 64, 4, 3), Tile(16, 16, 128, 4, 3)),
            (Tile(64, 32, 32, 8, 3), Tile(64, 32, 64, 8, 3)),
        ),
        "ieee": (
            (Tile(4, 16, 64, 4, 3), Tile(4, 16, 64, 4, 3)),
            (Tile(16, 32, 32, 8, 3), Tile(16, 32, 32, 8, 3)),
        ),
    },
}


def how(itemsize: int, tf32: bool, device: GpuLimits) -> str:
    """Return how products are made: "half", "tf32" or "ieee". tf32: float32 may be multiplied as TF32."""
    if itemsize == 2:
        return "half"
    return "tf32" if tf32 and device.capability >= 80 else "ieee"


def choose(
    device: GpuLimits, H: int, B: int, math: str, *, projected: bool = False, training: bool = True, only: str = ""
) -> TritonPlan | str:
    """Return the plan for a layer of H units and B rows, or the reason why there is none.

    math: see `how`; projected: h is projected, which only `per_step` does; training: a backward follows; only: the kernel
    that is to run, empty for any.
    """
    weights = 4 * H * H * (2 if math == "half" else 4)
    plans, reasons = {}, []
    for kernel in KERNELS:
        plan = _rejection(kernel, H, math, projected, only) or _fit(device, kernel, H, B, math, training)
        if isinstance(plan, str):
            reasons.append(f"{kernel}: {plan}")
        else:
            plans[kernel] = plan
    for kernel in _preferred(plans.get("streamed"), H, B, weights, device):
        if kernel in plans:
            return replace(plans[kernel], reasons=(f"W_hh has {weights / 1024:.0f} KiB", *reasons))
    return "; ".join(reasons)


def _preferred(streamed: TritonPlan | None, H: int, B: int, weights: int, device: GpuLimits) -> tuple[str, ...]:
    if streamed and weights <= STREAMED_BYTES and _blocks(streamed, H, B) <= device.sms:
        return KERNELS
    return "single_block", "per_step", "streamed"


def _rejection(kernel: str, H: int, math: str, projected: bool, only: str) -> str | None:
    if only not in ("", kernel):
        return f"{only} was asked for"
    if projected and kernel != "per_step":
        return "projection goes through per_step"
    if kernel == "single_block" and _padded(math, H) is None:
        return f"W_hh of H {H} does not stay on one multiprocessor"
    return None


def _padded(math: str, H: int) -> tuple[int, int] | None:
    return next((pair for pair in _SINGLE_BLOCK[math] if pair[0] >= H), None)


def _fit(device: GpuLimits, kernel: str, H: int, B: int, math: str, training: bool) -> TritonPlan | str:
    """The tiles of a kernel whose shared memory the device has, or what is missing."""
    itemsize = 2 if math == "half" else 4
    plans, least = [], None
    for forward, backward in _candidates(kernel, H, math):
        shared = shared_bytes(kernel, forward, itemsize, backward=False)
        if training:
            shared = max(shared, shared_bytes(kernel, backward, itemsize, backward=True))
        least = min(shared, least or shared)
        if shared <= device.shared_bytes:
            plans.append(TritonPlan(kernel, math, forward, backward, shared, ()))
    if not plans:
        return f"needs {least} bytes of shared memory, {device.name} gives a block {device.shared_bytes}"
    if kernel == "single_block":
        return plans[0]
    return next((plan for plan in plans if B <= plan.forward.BM or _blocks(plan, H, B) <= device.sms), plans[-1])


def _blocks(plan: TritonPlan, H: int, B: int) -> int:
    """Blocks of a forward launch: `streamed` goes through all units of its rows in one."""
    return ceil(B / plan.forward.BM) * (ceil(H / plan.forward.BN) if plan.kernel == "per_step" else 1)


def _candidates(kernel: str, H: int, math: str) -> list[tuple[Tile, Tile]]:
    if kernel != "single_block":
        return list(_TILED[kernel][math])
    HP, warps = _padded(math, H)
    tiles = [Tile(_ROWS[math], HP, HP, warps, stages) for stages in (2, 1)]
    return [(tiles[0], tiles[0]), (tiles[0], tiles[1]), (tiles[1], tiles[1])]


def shared_bytes(kernel: str, tile: Tile, itemsize: int, backward: bool) -> int:
    """An upper bound of a kernel's shared memory in bytes; the compiled number is below it (tests hold it to that)."""
    sums = tile.BM * 4 * tile.BN * 4
    if kernel == "single_block":
        weights = 4 * tile.BN * tile.BN * itemsize
        # forward: x_gates; backward: gates, and c, the c before it twice, dh and dc
        loads = tile.BM * tile.BN * ((4 * itemsize + 16 + itemsize) if backward else 4 * itemsize)
        return weights + (tile.stages - 1) * loads + sums + 1024
    rows = 1 if backward else 4
    blocks = tile.BK * rows * tile.BN * itemsize + tile.BM * tile.BK * itemsize
    if kernel == "streamed" and not backward:
        blocks += tile.BM * 4 * tile.BN * itemsize
    return (tile.stages - 1) * blocks + sums + 1024  # the block in use is in registers
