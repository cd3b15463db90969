"""Module calls in CUDA graphs: a replay gives the bits of an eager call, and what the host costs without it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import fastlstm
from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.layers import GridPoint, call_of, input_of, ours, theirs
from benchmarks.gpu_day.place import Place

CELLS = (
    *(GridPoint("dense", math, 1, 512, 16, 64) for math in ("bf16", "f16", "tf32", "f32")),
    GridPoint("dense", "bf16", 1, 1024, 16, 64),
    GridPoint("dense", "bf16", 1, 128, 16, 64),
    GridPoint("dense", "bf16", 2, 256, 64, 64),
    GridPoint("bidirectional", "bf16", 1, 256, 16, 64),
    GridPoint("projected", "bf16", 1, 512, 16, 64),
    GridPoint("packed", "bf16", 1, 512, 16, 64),
    GridPoint("packed", "tf32", 1, 256, 64, 64),
)


def items(place: Place) -> list[Item]:
    place.start()
    cells = (
        (GridPoint("dense", "bf16", 1, 16, 2, 3), GridPoint("packed", "f32", 1, 16, 2, 3)) if place.rehearsal else CELLS
    )
    return [Item(f"{cell.what} {mode}", (cell, mode)) for cell in cells for mode in ("inference", "training")]


def run(place: Place, item: Item) -> Iterator[dict]:
    cell, mode = item.values
    with place.math(cell.math), fastlstm.backend(place.backend):
        forced = place.avoid(cell.math, cell.H, cell.B, cell.layout == "projected")
        torch.manual_seed(0)
        call = call_of(ours(theirs(cell, place), cell, place), input_of(cell, place, mode == "training"), mode)
        right = copies(call())
        plan = fastlstm.dispatch.last_plan()
        row = {**cell.columns, "mode": mode, "plan": plan[:120], "forced": forced}
        try:
            replay, kept = measure.captured(place, call)
        except Exception as error:
            if not place.alive():
                raise
            yield {**row, "same": None, "refused": measure.said(error)}
            return
        same = []
        for _ in range(3):
            for tensor in kept:
                tensor.zero_()
            replay()
            place.sync()
            same += [torch.equal(a, b) for a, b in zip(kept, right, strict=True)]
        seconds, often = measure.in_turns(place, {"eager": call, "replay": replay})
        us = {f"{name}_us": found * 1e6 for name, found in seconds.items()}
        yield {**row, "same": all(same), **us, "repeats": often, "status": place.taken()}


def copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies that keep no autograd graph: its leaves would bring the stream they were made on into the capture."""
    return [tensor.detach().clone() for tensor in tensors]
