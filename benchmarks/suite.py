"""Every case that is timed, by name: `group/what`. The suite, the table of floors and the report all read this list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import characters, layer
from benchmarks.work import Work

H_GRID, B_GRID = (64, 128, 256, 512, 1024), (16, 50, 128)


@dataclass(frozen=True)
class Timed:
    """One case. make: builds it; quick: part of `make bench`."""

    name: str
    make: Callable[[], Work]
    quick: bool = False

    @property
    def group(self) -> str:
        return self.name.split("/")[0]


def _grid() -> list[Timed]:
    """Training step and forward without gradients over H and B, T 64, I = H."""
    cases = []
    for kind, train in (("training", True), ("forward", False)):
        for B in (1, *B_GRID):
            for H in H_GRID:
                quick = (B, H) in ((1, 128), (50, 128), (50, 256))
                group = f"{kind}-b1" if B == 1 else kind
                cases.append(Timed(f"{group}/H{H}-B{B}", partial(layer.layer, 64, B, H, train=train), quick))
    return cases


CASES = [
    *_grid(),
    Timed("packed/H128", partial(layer.layer, 100, 32, 128, packed=True), quick=True),
    Timed("packed/H256", partial(layer.layer, 100, 32, 256, packed=True)),
    Timed("packed-bidirectional/H256", partial(layer.layer, 100, 32, 256, packed=True, bidirectional=True)),
    Timed("projection/H256-P128-B16", partial(layer.layer, 64, 16, 256, P=128)),
    Timed("projection/H256-P128-B50", partial(layer.layer, 64, 50, 256, P=128), quick=True),
    Timed("one-step/2x128", partial(layer.one_step, 2, 128), quick=True),
    Timed("one-step/2x512", partial(layer.one_step, 2, 512), quick=True),
    Timed("one-step/1x1024", partial(layer.one_step, 1, 1024)),
    Timed("stream/2x512-bfloat16", partial(layer.stream, 2, 512)),
    Timed("characters/1x128-B50-T50", partial(characters.training_step, 1, 128, 50, 50)),
    Timed("characters/2x128-B50-T50", partial(characters.training_step, 2, 128, 50, 50), quick=True),
    Timed("characters/2x512-B64-T64", partial(characters.training_step, 2, 512, 64, 64)),
    Timed("sampling/2x128", partial(characters.sampling, 2, 128), quick=True),
    Timed("sampling/2x512", partial(characters.sampling, 2, 512)),
    Timed("sampling-64/2x128", partial(characters.sampling, 2, 128, 64)),
]
