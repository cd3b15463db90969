"""nn.LSTM and fastlstm.LSTM with the same weights, and calls of them, for several stages."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from benchmarks.gpu_day.measure import Run
from benchmarks.gpu_day.place import MATHS, Place, dtype
from fastlstm.verify.cudnn import algorithm


class GridPoint(NamedTuple):
    """A size and kind of call. layout: dense, packed (lengths T … T / 4), projected (to H / 2) or bidirectional; I = H."""

    layout: str
    math: str
    L: int
    H: int
    B: int
    T: int

    @property
    def columns(self) -> dict[str, Any]:
        return self._asdict()

    @property
    def what(self) -> str:
        return f"{self.math} {self.L}x{self.H} B{self.B} T{self.T} {self.layout}"


def theirs(cell: GridPoint, place: Place) -> nn.LSTM:
    return nn.LSTM(cell.H, cell.H, cell.L, device=place.device, **_kind(cell))


def ours(of: nn.LSTM, cell: GridPoint, place: Place) -> nn.Module:
    """fastlstm.LSTM with the weights of nn.LSTM."""
    made = fastlstm.LSTM(cell.H, cell.H, cell.L, device=place.device, **_kind(cell))
    made.load_state_dict(of.state_dict())
    return made


def _kind(cell: GridPoint) -> dict[str, Any]:
    kind = {
        "bidirectional": cell.layout == "bidirectional",
        "proj_size": cell.H // 2 if cell.layout == "projected" else 0,
    }
    return {**kind, "dtype": torch.float32 if cell.math.startswith("autocast") else dtype(cell.math)}


def input_of(cell: GridPoint, place: Place, training: bool) -> Tensor | PackedSequence:
    of = _kind(cell)["dtype"]
    x = torch.randn(cell.T, cell.B, cell.H, device=place.device, dtype=of, requires_grad=training)
    if cell.layout != "packed":
        return x
    lengths = torch.linspace(cell.T, max(1, cell.T // 4), cell.B).long()
    packed = pack_padded_sequence(x, lengths)
    leaf = packed.data.detach().requires_grad_(training)
    return PackedSequence(leaf, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def call_of(module: nn.Module, x: Tensor | PackedSequence, mode: str) -> Run:
    """What calls a module. mode: inference; forward (which keeps what backward needs); training (into input and weights)."""
    leaf = x.data if isinstance(x, PackedSequence) else x
    wanted = [leaf, *module.parameters()]
    with torch.no_grad():
        out = module(x)[0]
    ones = torch.ones_like(out.data if isinstance(out, PackedSequence) else out)

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(mode != "inference"):
            out = module(x)[0]
            out = out.data if isinstance(out, PackedSequence) else out
            return [out, *torch.autograd.grad(out, wanted, ones)] if mode == "training" else [out]

    return run


def cudnn_algorithm(cell: GridPoint, training: bool) -> str:
    """The class of algorithm that torch's rules ask cuDNN for; under autocast, whatever its type, nn.LSTM is float16 there."""
    name = "float16" if cell.math.startswith("autocast") else MATHS[cell.math]
    layers = (cell.H, cell.H, cell.B, cell.L, cell.layout == "bidirectional")
    return algorithm(name, *layers, cell.layout == "packed", cell.layout == "projected", training)


def autocast(cell: GridPoint, place: Place) -> Any:
    """The autocast that a cell speaks of, as a context."""
    half = torch.bfloat16 if cell.math.endswith("bf16") else torch.float16
    on = cell.math.startswith("autocast") and not place.rehearsal  # not every CPU has it
    return torch.autocast(place.device.type, half if on else torch.bfloat16, enabled=on)


def far(got: list[Tensor], right: list[Tensor]) -> float:
    """The largest relative difference of two lists of results; infinite where one is NaN."""
    pairs = zip(got, right, strict=True)
    all_of = [((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item() for a, b in pairs]
    return max(off if off == off else math.inf for off in all_of)
