"""fastlstm.LSTM as a user calls it beside nn.LSTM: in turns in one process, eager and replayed from a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

import fastlstm
from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.layers import GridPoint, call_of, cudnn_algorithm, far, input_of, ours, theirs
from benchmarks.gpu_day.place import ALLOWED, Place

T = 128
SIZES = (
    (1024, 16),
    (512, 16),
    (256, 16),
    (512, 64),
    (1024, 64),
    (128, 16),
    (256, 64),
    (768, 16),
    (128, 64),
    (1024, 128),
)
KINDS = (("dense", 2), ("bidirectional", 1), ("packed", 1), ("projected", 1))


def cells() -> list[GridPoint]:
    """The headline first: one layer in each type, then other kinds of layers, then the remaining sizes."""
    first = [GridPoint("dense", math, 1, H, B, T) for (H, B), math in product(SIZES[:4], ("bf16", "f16", "tf32"))]
    kinds = [
        GridPoint(layout, math, L, H, B, T)
        for (H, B), (layout, L), math in product(((512, 64), (256, 16)), KINDS, ("bf16", "tf32"))
    ]
    rest = [GridPoint("dense", math, 1, H, B, T) for (H, B), math in product(SIZES[4:], ("bf16", "tf32", "f16"))]
    return [*first, *kinds, *rest, GridPoint("dense", "bf16", 1, 1024, 1, T), GridPoint("dense", "f32", 1, 512, 16, T)]


def items(place: Place) -> list[Item]:
    place.start()
    wanted = cells()
    if place.rehearsal:
        wanted = [
            GridPoint("dense", "bf16", 2, 16, 2, 3),
            GridPoint("packed", "tf32", 1, 16, 2, 3),
            GridPoint("projected", "f32", 1, 16, 2, 2),
        ]
    return [Item(cell.what, (cell,)) for cell in wanted]


def run(place: Place, item: Item) -> Iterator[dict]:
    (cell,) = item.values
    with place.math(cell.math):
        forced = place.avoid(cell.math, cell.H, cell.B, cell.layout == "projected")
        torch.manual_seed(0)
        their = theirs(cell, place)
        our = ours(their, cell, place)
        for mode in ("inference", "training"):
            yield from _mode(place, cell, their, our, mode, forced)


def _mode(place: Place, cell: GridPoint, their, our, mode: str, forced: str) -> Iterator[dict]:
    x = input_of(cell, place, mode == "training")
    with fastlstm.backend(place.backend):
        plain = call_of(our, x, mode)

    def forced_call() -> list[torch.Tensor]:
        with fastlstm.backend(place.backend):
            return plain()

    runs = {"torch": call_of(their, x, mode), "cuda": forced_call}
    off = far(runs["cuda"](), runs["torch"]())
    plan = fastlstm.dispatch.last_plan()
    if not plan.startswith(place.backend):
        raise RuntimeError(f"{place.backend} was asked for and this ran: {plan}")
    about = {**cell.columns, "training": mode == "training", "off": off, "plan": plan[:160], "forced": forced}
    choices = place.choose(cell.math, cell.H, cell.B, projected=cell.layout == "projected")
    about["kernels"] = [forced or choice.kernel for choice in choices]  # of forward and backward
    about["algorithm"] = cudnn_algorithm(cell, mode == "training")
    seconds, often = measure.in_turns(place, runs)
    yield {**about, "graph": False, "seconds": seconds, "repeats": often, **_status(place, cell, off)}
    if cell.layout == "packed":  # torch copies lengths to the GPU, which no graph can; the stage `graph` tries ours
        return
    replays, errors = measure.replays(place, runs)
    seconds, often = measure.in_turns(place, replays)
    yield {**about, "graph": True, "seconds": seconds, "repeats": often | errors, **_status(place, cell, off)}


def _status(place: Place, cell: GridPoint, off: float) -> dict:
    """The status word, and whether the results are wrong; what timed out is not used again."""
    status = place.taken()
    if status:
        choices = place.choose(cell.math, cell.H, cell.B, projected=cell.layout == "projected")
        place.timed_out |= {(choice.kernel, cell.math, bool(back)) for back, choice in enumerate(choices)}
    # differences grow from layer to layer and through backward
    return {"status": status, "wrong": bool(status) or not off <= 3 * ALLOWED[cell.math]}
