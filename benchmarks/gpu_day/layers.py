"""nn.LSTM and fastlstm.LSTM with the same weights, and calls of them, for several stages."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from benchmarks.gpu_day.executor import MATHS, GpuExecutor, dtype
from benchmarks.gpu_day.measure import TimedCall
from fastlstm.verify.cudnn import algorithm


class LayerConfig(NamedTuple):
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


def make_torch_lstm(config: LayerConfig, executor: GpuExecutor) -> nn.LSTM:
    return nn.LSTM(config.H, config.H, config.L, device=executor.device, **_lstm_options(config))


def make_lstm(torch_lstm: nn.LSTM, config: LayerConfig, executor: GpuExecutor) -> nn.Module:
    """fastlstm.LSTM with the weights of nn.LSTM."""
    lstm = fastlstm.LSTM(config.H, config.H, config.L, device=executor.device, **_lstm_options(config))
    lstm.load_state_dict(torch_lstm.state_dict())
    return lstm


def _lstm_options(config: LayerConfig) -> dict[str, Any]:
    options = {
        "bidirectional": config.layout == "bidirectional",
        "proj_size": config.H // 2 if config.layout == "projected" else 0,
    }
    return {**options, "dtype": torch.float32 if config.math.startswith("autocast") else dtype(config.math)}


def input_of(config: LayerConfig, executor: GpuExecutor, training: bool) -> Tensor | PackedSequence:
    input_dtype = _lstm_options(config)["dtype"]
    x = torch.randn(config.T, config.B, config.H, device=executor.device, dtype=input_dtype, requires_grad=training)
    if config.layout != "packed":
        return x
    lengths = torch.linspace(config.T, max(1, config.T // 4), config.B).long()
    packed = pack_padded_sequence(x, lengths)
    leaf = packed.data.detach().requires_grad_(training)
    return PackedSequence(leaf, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def call_of(module: nn.Module, x: Tensor | PackedSequence, mode: str) -> TimedCall:
    """What calls a module. mode: inference; forward (which keeps what backward needs); training (into input and weights)."""
    leaf = x.data if isinstance(x, PackedSequence) else x
    leaves = [leaf, *module.parameters()]
    with torch.no_grad():
        out = module(x)[0]
    ones = torch.ones_like(out.data if isinstance(out, PackedSequence) else out)

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(mode != "inference"):
            out = module(x)[0]
            out = out.data if isinstance(out, PackedSequence) else out
            return [out, *torch.autograd.grad(out, leaves, ones)] if mode == "training" else [out]

    return run


def cudnn_algorithm(config: LayerConfig, training: bool) -> str:
    """The class of algorithm that torch's rules ask cuDNN for; under autocast, whatever its type, nn.LSTM is float16 there."""
    name = "float16" if config.math.startswith("autocast") else MATHS[config.math]
    layers = (config.H, config.H, config.B, config.L, config.layout == "bidirectional")
    return algorithm(name, *layers, config.layout == "packed", config.layout == "projected", training)


def autocast(config: LayerConfig, executor: GpuExecutor) -> Any:
    """The autocast that a cell speaks of, as a context."""
    half = torch.bfloat16 if config.math.endswith("bf16") else torch.float16
    on = config.math.startswith("autocast") and not executor.rehearsal  # not every CPU has it
    return torch.autocast(executor.device.type, half if on else torch.bfloat16, enabled=on)


def relative_difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference of two lists of results; infinite where one is NaN."""
    pairs = zip(actual, expected, strict=True)
    differences = [((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item() for a, b in pairs]
    return max(difference if difference == difference else math.inf for difference in differences)
