"""Times the candidates for a call beside torch's own path: the same module call, interleaved, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastlstm
from fastlstm.verify.checks import MATHS, tf32

ROUNDS = 7
Clock = Callable[[], float]


@dataclass(frozen=True)
class Cell:
    """One size and kind of call. layout: dense, packed (lengths T … T / 4) or projected (to H / 2); I = H."""

    layout: str
    math: str
    training: bool
    H: int
    B: int
    T: int


def grid(layout: str, H: tuple[int, ...], B: tuple[int, ...], T: tuple[int, ...], maths=tuple(MATHS)) -> list[Cell]:
    """All cells of a layout over these sizes."""
    return [Cell(layout, *rest) for rest in product(maths, (True, False), H, B, T)]


CELLS = (
    *grid("dense", (16, 64, 128, 256, 512, 1024), (1, 16, 64, 256), (4, 128)),
    *grid("packed", (128, 256, 512), (16, 64), (64,)),
    *grid("projected", (256, 512, 1024), (16, 64), (64,)),
)


class DeviceClock:
    """Seconds now, once the device has done all that it was given. Pickles, unlike a lambda."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def run(candidates: tuple[str, ...], device: torch.device, cells: tuple[Cell, ...], clock: Clock) -> Iterator[dict]:
    """Time every cell; yields the cell's fields and `seconds`: contender → median seconds of one call."""
    for cell in cells:
        torch.manual_seed(0)
        with tf32(cell.math == "tf32"):
            yield {**asdict(cell), "seconds": times(_contenders(candidates, device, cell), clock)}


def times(contenders: dict[str, Callable[[], object]], clock: Clock) -> dict[str, float]:
    """Median seconds of each; one that cannot run the call (its first one shows it) is left out, torch too.

    Raises RuntimeError where the device itself failed.
    """
    samples: dict[str, list[float]] = {}
    for name, step in contenders.items():
        try:
            step(), step()  # the first compiles
        except RuntimeError as error:  # a BackendError, cuDNN without such a kernel, too little memory
            if "CUDA error" in str(error):
                raise
            continue
        samples[name] = []
    for _ in range(ROUNDS):
        for name, found in samples.items():
            start = clock()
            contenders[name]()
            found.append(clock() - start)
    return {name: statistics.median(found) for name, found in samples.items()}


def _contenders(candidates: tuple[str, ...], device: torch.device, cell: Cell) -> dict[str, Callable[[], object]]:
    P = cell.H // 2 if cell.layout == "projected" else 0
    theirs = nn.LSTM(cell.H, cell.H, proj_size=P, device=device, dtype=MATHS[cell.math])
    ours = fastlstm.LSTM(cell.H, cell.H, proj_size=P, device=device, dtype=MATHS[cell.math])
    ours.load_state_dict(theirs.state_dict())
    x = _input(cell, device)
    found: dict[str, Callable[[], object]] = {"torch": lambda: _call(theirs, x, cell.training)}
    for name in candidates:
        found[name] = lambda name=name: _forced(name, ours, x, cell.training)
    return found


def _forced(name: str, module: nn.Module, x: Tensor | PackedSequence, training: bool) -> None:
    with fastlstm.backend(name):
        _call(module, x, training)


def _input(cell: Cell, device: torch.device) -> Tensor | PackedSequence:
    x = torch.randn(cell.T, cell.B, cell.H, device=device, dtype=MATHS[cell.math], requires_grad=cell.training)
    if cell.layout != "packed":
        return x
    lengths = torch.linspace(cell.T, max(1, cell.T // 4), cell.B).long()
    return nn.utils.rnn.pack_padded_sequence(x, lengths)


def _call(module: nn.Module, x: Tensor | PackedSequence, training: bool) -> None:
    """Forward, or forward and backward into weights and input."""
    if not training:
        with torch.no_grad():
            module(x)
        return
    out = module(x)[0]
    out = out.data if isinstance(out, PackedSequence) else out
    leaf = x.data if isinstance(x, PackedSequence) else x
    torch.autograd.grad(out, [leaf, *module.parameters()], torch.ones_like(out))
