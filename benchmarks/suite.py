"""The table of benchmark cases. A name is `group/what`. The suite, the table of targets and `before_after` read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import characters, competitors, layer
from benchmarks.layer import shape
from benchmarks.workload import Workload
from fastlstm.testing.cases import Case

H_GRID, B_GRID = (64, 128, 256, 512, 1024), (16, 50, 128)


@dataclass(frozen=True)
class BenchmarkCase:
    """One case.

    Attributes:
        name: group/what.
        make: builds the workload: a function of layer.py or characters.py with its arguments bound.
        quick: whether it belongs to the quick part.
        competitors: other LSTMs that are timed too.
        threads: number of torch's threads; None: as set.
    """

    name: str
    make: Callable[[], Workload]
    quick: bool = False
    competitors: tuple[str, ...] = ()
    threads: int | None = None

    @property
    def group(self) -> str:
        return self.name.split("/")[0]

    def build(self) -> Workload:
        """Build the workload with seed 0 and add the competitors that can run it."""
        torch.manual_seed(0)
        workload = self.make()
        if self.competitors:
            competitors.add(workload, self.competitors)
        return workload


def _layer(case: Case, **call: object) -> Callable[[], Workload]:
    return partial(layer.layer, layer.LayerCall(case, **call))


SIMPLE = ("cell-loop", "onnxruntime", "jax")  # those without a compilation of a minute


def _grid() -> list[BenchmarkCase]:
    """Training step and forward without gradients over H and B, T 64, I = H."""
    cases = []
    for mode, train in (("training", True), ("forward", False)):
        for B in (1, *B_GRID):
            for H in H_GRID:
                with_competitors = {(1, 128): SIMPLE, (50, 512): SIMPLE, (16, 128): competitors.CPU}.get((B, H), ())
                quick = (B, H) in ((1, 128), (50, 128), (50, 256))
                group = f"{mode}-b1" if B == 1 else mode
                name = f"{group}/H{H}-B{B}"
                cases.append(BenchmarkCase(name, _layer(shape(64, B, H), train=train), quick, with_competitors))
    return cases


def _bfloat16() -> list[BenchmarkCase]:
    """The grid, packed sequences and a projection in bfloat16, and a training step under autocast."""
    dtype = torch.bfloat16
    cases = [
        BenchmarkCase(f"bfloat16-{mode}/H{H}-B{B}", _layer(shape(64, B, H), train=mode == "training", dtype=dtype))
        for mode in ("training", "forward")
        for B in (1, *B_GRID)
        for H in H_GRID
    ]
    packed, projected = shape(100, 32, 256, packed=True), shape(64, 50, 256, P=128)
    return [
        *cases,
        BenchmarkCase("bfloat16-packed/H256", _layer(packed, dtype=dtype)),
        BenchmarkCase("bfloat16-projection/H256-P128-B50", _layer(projected, dtype=dtype)),
        BenchmarkCase("bfloat16-autocast/H256-B50", _layer(shape(64, 50, 256), autocast=True)),
    ]


def _scaling() -> list[BenchmarkCase]:
    """Training steps around T 64, B 50, H 128, one size varied at a time; also more threads than rows."""
    cases = [BenchmarkCase(f"scaling-T/T{T}", _layer(shape(T, 50, 128))) for T in (1, 8, 32, 128, 512)]
    cases += [BenchmarkCase(f"scaling-B/B{B}", _layer(shape(64, B, 128))) for B in (1, 2, 4, 7, 16, 33, 64, 128, 256)]
    cases += [
        BenchmarkCase(f"scaling-H/H{H}", _layer(shape(64, 50, H))) for H in (32, 65, 96, 129, 192, 256, 384, 512, 768)
    ]
    for threads in (1, 2, 4):
        for B in (1, 3, 50):
            quick = B == 3 and threads == 4
            cases.append(
                BenchmarkCase(f"scaling-threads/B{B}-{threads}", _layer(shape(64, B, 128)), quick, (), threads)
            )
    return cases


def _gpu() -> list[BenchmarkCase]:
    """Training steps of a character model and dense layers on a GPU, these with the competitors that need one."""
    cases = []
    for L, H, B, T in ((2, 128, 50, 50), (2, 512, 64, 64)):
        make = partial(characters.training_step, L, H, B, T, "cuda")
        cases.append(BenchmarkCase(f"gpu-characters/{L}x{H}-B{B}-T{T}", make))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for B, H in ((16, 128), (64, 256), (16, 512), (64, 1024)):
            for mode in ("training", "forward"):
                make = _layer(shape(256, B, H), train=mode == "training", device="cuda", dtype=dtype)
                name = f"gpu-{mode}/H{H}-B{B}-{str(dtype).removeprefix('torch.')}"
                cases.append(BenchmarkCase(name, make, competitors=competitors.GPU))
    return cases


CASES = [
    *_grid(),
    BenchmarkCase("packed/H128", _layer(shape(100, 32, 128, packed=True)), quick=True),
    BenchmarkCase("packed/H256", _layer(shape(100, 32, 256, packed=True))),
    BenchmarkCase("packed-bidirectional/H256", _layer(shape(100, 32, 256, packed=True), bidirectional=True)),
    BenchmarkCase("bidirectional/H256-B32", _layer(shape(64, 32, 256), bidirectional=True)),
    BenchmarkCase("projection/H256-P128-B16", _layer(shape(64, 16, 256, P=128))),
    BenchmarkCase("projection/H256-P128-B50", _layer(shape(64, 50, 256, P=128)), quick=True),
    BenchmarkCase("one-step/1x8", _layer(shape(1, 1, 8, initial=True), train=False), True),
    BenchmarkCase("one-step/2x128", _layer(shape(1, 1, 128, initial=True), L=2, train=False), True, SIMPLE),
    BenchmarkCase("one-step/2x512", _layer(shape(1, 1, 512, initial=True), L=2, train=False), True, SIMPLE),
    BenchmarkCase("one-step/2x640", _layer(shape(1, 1, 640, initial=True), L=2, train=False)),
    BenchmarkCase("one-step/1x1024", _layer(shape(1, 1, 1024, initial=True), train=False), False, SIMPLE),
    BenchmarkCase("stream/2x512-bfloat16", partial(layer.stream, 2, 512)),
    BenchmarkCase("stream/2x640-bfloat16", partial(layer.stream, 2, 640)),
    BenchmarkCase("characters/1x128-B50-T50", partial(characters.training_step, 1, 128, 50, 50)),
    BenchmarkCase("characters/2x128-B50-T50", partial(characters.training_step, 2, 128, 50, 50), quick=True),
    BenchmarkCase("characters/2x512-B64-T64", partial(characters.training_step, 2, 512, 64, 64)),
    BenchmarkCase("sampling/2x128", partial(characters.sampling, 2, 128), quick=True),
    BenchmarkCase("sampling/2x512", partial(characters.sampling, 2, 512)),
    BenchmarkCase("sampling-64/2x128", partial(characters.sampling, 2, 128, 64)),
    *_bfloat16(),
    *_scaling(),
    *_gpu(),
]
