"""Every case that is timed, by name: `group/what`. The suite, the table of floors and the report all read this list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import characters, layer, peers
from benchmarks.layer import shape
from benchmarks.work import Work
from fastlstm.testing.cases import Case

H_GRID, B_GRID = (64, 128, 256, 512, 1024), (16, 50, 128)


@dataclass(frozen=True)
class Timed:
    """One case. make: builds it; quick: part of `make bench`; peers: who else runs; threads: torch's, None: as set."""

    name: str
    make: Callable[[], Work]
    quick: bool = False
    peers: tuple[str, ...] = ()
    threads: int | None = None

    @property
    def group(self) -> str:
        return self.name.split("/")[0]

    def build(self) -> Work:
        """Draw the tensors, the same at every call; peers that are there take part."""
        torch.manual_seed(0)
        work = self.make()
        if self.peers:
            peers.add(work, self.peers)
        return work


def _layer(case: Case, **call: object) -> Callable[[], Work]:
    return partial(layer.layer, layer.Call(case, **call))


SIMPLE = ("cell-loop", "onnxruntime", "jax")  # those that start at once


def _grid() -> list[Timed]:
    """Training step and forward without gradients over H and B, T 64, I = H."""
    cases = []
    for kind, train in (("training", True), ("forward", False)):
        for B in (1, *B_GRID):
            for H in H_GRID:
                with_peers = {(1, 128): SIMPLE, (50, 512): SIMPLE, (16, 128): peers.CPU}.get((B, H), ())
                quick = (B, H) in ((1, 128), (50, 128), (50, 256))
                group = f"{kind}-b1" if B == 1 else kind
                name = f"{group}/H{H}-B{B}"
                cases.append(Timed(name, _layer(shape(64, B, H), train=train), quick, with_peers))
    return cases


def _scaling() -> list[Timed]:
    """One size at a time around a training step of T 64, B 50, H 128; threads also on one row, more than rows."""
    cases = [Timed(f"scaling-T/T{T}", _layer(shape(T, 50, 128))) for T in (1, 8, 32, 128, 512)]
    cases += [Timed(f"scaling-B/B{B}", _layer(shape(64, B, 128))) for B in (1, 2, 4, 7, 16, 33, 64, 128, 256)]
    cases += [Timed(f"scaling-H/H{H}", _layer(shape(64, 50, H))) for H in (32, 65, 96, 129, 192, 256, 384, 512, 768)]
    for threads in (1, 2, 4):
        for B in (1, 3, 50):
            quick = B == 3 and threads == 4
            cases.append(Timed(f"scaling-threads/B{B}-{threads}", _layer(shape(64, B, 128)), quick, (), threads))
    return cases


def _gpu() -> list[Timed]:
    """Dense layers on the GPU, with the peers that need one."""
    cases = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for B, H in ((16, 128), (64, 256), (16, 512), (64, 1024)):
            for kind in ("training", "forward"):
                make = _layer(shape(256, B, H), train=kind == "training", device="cuda", dtype=dtype)
                name = f"gpu-{kind}/H{H}-B{B}-{str(dtype).removeprefix('torch.')}"
                cases.append(Timed(name, make, peers=peers.GPU))
    return cases


CASES = [
    *_grid(),
    Timed("packed/H128", _layer(shape(100, 32, 128, packed=True)), quick=True),
    Timed("packed/H256", _layer(shape(100, 32, 256, packed=True))),
    Timed("packed-bidirectional/H256", _layer(shape(100, 32, 256, packed=True), bidirectional=True)),
    Timed("bidirectional/H256-B32", _layer(shape(64, 32, 256), bidirectional=True)),
    Timed("projection/H256-P128-B16", _layer(shape(64, 16, 256, P=128))),
    Timed("projection/H256-P128-B50", _layer(shape(64, 50, 256, P=128)), quick=True),
    Timed("one-step/1x8", _layer(shape(1, 1, 8, initial=True), train=False), True),
    Timed("one-step/2x128", _layer(shape(1, 1, 128, initial=True), L=2, train=False), True, SIMPLE),
    Timed("one-step/2x512", _layer(shape(1, 1, 512, initial=True), L=2, train=False), True, SIMPLE),
    Timed("one-step/1x1024", _layer(shape(1, 1, 1024, initial=True), train=False), False, SIMPLE),
    Timed("stream/2x512-bfloat16", partial(layer.stream, 2, 512)),
    Timed("characters/1x128-B50-T50", partial(characters.training_step, 1, 128, 50, 50)),
    Timed("characters/2x128-B50-T50", partial(characters.training_step, 2, 128, 50, 50), quick=True),
    Timed("characters/2x512-B64-T64", partial(characters.training_step, 2, 512, 64, 64)),
    Timed("sampling/2x128", partial(characters.sampling, 2, 128), quick=True),
    Timed("sampling/2x512", partial(characters.sampling, 2, 512)),
    Timed("sampling-64/2x128", partial(characters.sampling, 2, 128, 64)),
    *_scaling(),
    *_gpu(),
]
