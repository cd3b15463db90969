"""Asks the planner (csrc/cuda/plan.h) about a GPU, real or made up, and puts its answers into words.

    choices(lib, cost_model.KNOWN["H100"], code, H=768, B=16)

`lib` is `fastlstm._C.plan` or the simulation's; the GPU needs not be there. Times are predictions of its cost model
(csrc/cuda/cost_model.h). `code` is that of the type (csrc/cuda/args.h).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastlstm.backends import cost_model
from fastlstm.backends.cost_model import Device

__all__ = ["choices", "gpu", "layers", "sentence", "tilings", "together"]

KERNELS = ("per_step", "single_block", "cooperative", "lean")  # of one layer


def gpu(lib: Any, device: Device) -> Any:
    """The planner's description of a device."""
    return cost_model.description(device, lib)


def choices(
    lib: Any,
    device: Device,
    code: int,
    *,
    H: int,
    B: int,
    projected: bool = False,
    only: str = "",
    without: frozenset[str] = frozenset(),
) -> tuple:
    """The planner's choices for forward and backward.

    only: per_step, single_block, cooperative or lean; without: kernels that must not run. Raises ValueError with the reason
    where `only` cannot run, or no kernel is left.
    """
    described = gpu(lib, device)

    def ask(kernel: str, backward: bool) -> Any:
        return lib.choose(described, code, H, B, backward, projected, kernel)

    return tuple(_choice(partial(ask, backward=backward), only, without) for backward in (False, True))


def _choice(ask: Callable[[str], Any], only: str, without: frozenset[str]) -> Any:
    """The planner's choice; where that is not to run, the cheapest of the other kernels that can."""
    if only in without:
        raise ValueError(f"kernel {only} was asked for and is not to run")
    choice = ask(only)
    if choice.kernel in without and choice.blocks >= 0:
        others = [ask(kernel) for kernel in KERNELS if kernel not in without]
        choice = min((c for c in others if c.blocks >= 0), key=lambda c: c.us, default=None)
    if choice is None:
        raise ValueError("no kernel is left that can run this call")
    if choice.blocks < 0:
        raise ValueError(choice.why)
    return choice


def tilings(lib: Any, device: Device, code: int, *, H: int, B: int, backward: bool) -> list:
    """Every choice of `single_block`, `cooperative` and `lean` that fits, the cheapest first."""
    return lib.tilings(gpu(lib, device), code, H, B, backward)


def sentence(choice: Any, device: Device) -> str:
    """Kernel, tiles, registers, shared memory, blocks, predicted microseconds of a step, what bounds it, and why."""
    how = f"{choice.us:.2f} µs a step predicted on {device.name}, bound by {choice.bound}; {choice.why}"
    if choice.kernel == "per_step":
        return f"per_step: {how}"
    t = choice.t
    if choice.kernel == "lean":
        tiles = (
            f"{t.k_splits} warps, {_number(t.groups, 'group')}, {_number(t.phase, 'tile')} of 8 sequences in "
            f"{_number(t.row_tiles // t.phase, 'pass', 'passes')}"
        )
    else:
        tiles = f"{t.groups} groups x {t.k_splits} warps, {t.row_tiles} tiles of 8 sequences in phases of {t.phase}"
    parts = f", gates in {t.gate_splits} parts" if t.gate_splits > 1 else ""
    size = f"{choice.blocks} blocks of {choice.threads} threads and {choice.shared_bytes / 1024:.1f} KiB"
    return f"{choice.kernel}: {size} ({t.unit_blocks} over units x {t.row_blocks} over rows; {tiles}{parts}); {how}"


def layers(
    lib: Any, device: Device, code: int, *, H: int, B: int, count: int, chained: bool, backward: bool = False
) -> Any | None:
    """The planner's choice for `count` layers or directions in one launch of `lean`, or None where none fits."""
    choice = lib.choose_layers(gpu(lib, device), code, H, B, backward, count, chained)
    return None if choice.blocks < 0 else choice


def together(
    lib: Any, device: Device, code: int, *, H: int, B: int, most: int, chained: bool
) -> tuple[int, Any | None, Any | None]:
    """How many of `most` layers (chained) or directions to run in one launch, and its choices forward and backward.

    As many as fit where that is predicted to be faster than one after the other; backward is None where it is not. 1 and
    no choice: none together.
    """
    alone = choices(lib, device, code, H=H, B=B)

    def choice(count: int, backward: bool) -> Any | None:
        found = layers(lib, device, code, H=H, B=B, count=count, chained=chained, backward=backward)
        return found if found is not None and found.us < count * alone[backward].us else None

    for count in range(most, 1, -1):
        if (forward := choice(count, False)) is not None:
            return count, forward, choice(count, True)
    return 1, None, None


def _number(count: int, one: str, several: str = "") -> str:
    """1 tile, 2 tiles."""
    return f"{count} {one if count == 1 else several or one + 's'}"
