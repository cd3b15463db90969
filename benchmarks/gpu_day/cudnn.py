"""nn.LSTM on cuDNN, to compare with: microseconds of a step as the slope over T, eager and in a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.layers import GridPoint, autocast, call_of, cudnn_algorithm, input_of, theirs
from benchmarks.gpu_day.place import Place

LENGTHS = (64, 320)
SIZES = tuple(product((512, 1024, 256, 128), (16, 64))) + tuple(product((768, 1536), (16, 64)))
OTHERS = tuple(product((512, 1024, 256, 128, 768, 1536), (1, 128)))
KINDS = (
    ("dense", 2, 512, 64), ("dense", 3, 512, 128), ("dense", 2, 128, 50), ("packed", 1, 512, 64), ("packed", 1, 256, 64),
    ("projected", 1, 512, 64), ("projected", 1, 1024, 16), ("bidirectional", 1, 512, 64), ("bidirectional", 1, 256, 16),
)  # fmt: skip
REPEATS = {"rounds": 3, "target": 3e-3}


def cells() -> list[GridPoint]:
    """What matters most first; float32 without TF32 and the rarer sizes last."""
    dense = [GridPoint("dense", math, 1, H, B, 0) for (H, B), math in product(SIZES, ("f16", "bf16", "tf32"))]
    cast = [GridPoint("dense", f"autocast-{half}", 1, H, B, 0) for (H, B), half in product(SIZES[:4], ("f16", "bf16"))]
    kinds = [GridPoint(layout, math, L, H, B, 0) for (layout, L, H, B), math in product(KINDS, ("bf16", "tf32", "f16"))]
    rest = [GridPoint("dense", math, 1, H, B, 0) for (H, B), math in product(OTHERS, ("f16", "bf16", "tf32"))]
    exact = [GridPoint("dense", "f32", 1, H, B, 0) for H, B in (*SIZES, *OTHERS)]
    return [*dense, *cast, *kinds, *rest, *exact]


def items(place: Place) -> list[Item]:
    place.warm()
    wanted = cells()
    if place.rehearsal:
        wanted = [
            GridPoint("dense", "bf16", 1, 16, 2, 0),
            GridPoint("packed", "f32", 2, 16, 2, 0),
            GridPoint("dense", "autocast-bf16", 1, 16, 2, 0),
        ]
    return [Item(cell.what, (cell,)) for cell in wanted]


def run(place: Place, item: Item) -> Iterator[dict]:
    """Inference, forward that keeps, and training step, eager; inference and training from a graph."""
    (cell,) = item.values
    with place.math(cell.math), autocast(cell, place):
        lstm = theirs(cell, place)
        for mode in ("inference", "training", "forward"):
            calls = {}
            for T in (3, 6) if place.rehearsal else LENGTHS:
                x = input_of(cell._replace(T=T), place, mode == "training")
                calls[T] = call_of(lstm, x, mode)
            yield _row(place, cell, mode, False, *measure.in_turns(place, calls, **REPEATS))
            if mode != "forward" and cell.layout != "packed":  # torch copies lengths to the GPU, which no graph can
                replays, errors = measure.replays(place, calls)
                seconds, often = measure.in_turns(place, replays, **REPEATS)
                yield _row(place, cell, mode, True, seconds, often | errors)


def _row(place: Place, cell: GridPoint, mode: str, graph: bool, seconds: dict, about: dict) -> dict:
    """us: of a step, without what a call costs apart from its steps; us_absolute: of a step of the longer call."""
    columns = {name: value for name, value in cell.columns.items() if name != "T"}
    row = {**columns, "mode": mode, "graph": graph, "algorithm": cudnn_algorithm(cell, mode == "training")}
    row |= {"seconds": seconds, "repeats": about, "us": None, "us_absolute": None}
    if len(seconds) == 2:
        (short, least), (long, most) = sorted(seconds.items())
        row |= {"us": (most - least) / (long - short) * 1e6, "us_absolute": most / long * 1e6, "T": long}
    return row
