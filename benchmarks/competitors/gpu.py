"""GPU competitors, FlashRNN and haste where installed, and the class of algorithm that torch asks cuDNN for."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.competitors import AbsentError, Competitor, require, require_plain
from benchmarks.layer import LayerCall, PreparedLayer, backward_of


class TorchDeviceInfo(NamedTuple):
    """What torch's rules look at: compute capability and number of SMs."""

    major: int
    minor: int
    sms: int


def current_device_info() -> TorchDeviceInfo:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return TorchDeviceInfo(properties.major, properties.minor, properties.multi_processor_count)


def cudnn_algorithm(call: LayerCall, device: TorchDeviceInfo, forward: bool = True) -> str:
    """Return the algorithm class torch asks cuDNN for: standard, persist static or persist static small H.

    torch 2.13, aten/src/ATen/native/cudnn/RNN.cpp: get_algo and the heuristics above it.
    """
    case = call.case
    if case.projection or case.packed or call.dtype == torch.float64:
        return "standard"
    if device.major >= 6 and (case.H <= 192 if forward else case.H <= 128):
        return "persist static small H"
    even = case.H % 128 == 0 and case.I % 128 == 0
    if call.dtype == torch.float16 and call.L == 1 and not call.bidirectional and case.H <= 1024 and even:
        return "persist static" if _persists(case.B, case.T, device) else "standard"
    return "standard"


def _persists(B: int, T: int, device: TorchDeviceInfo) -> bool:
    """Torch's list of batch sizes and lengths for which the persistent kernel is faster."""
    if device.major == 7 and device.minor != 5:
        sizes = (B % 16 == 0 and B not in (80, 112)) or B == 8
        return sizes and any(least <= T and most >= B for least, most in ((40, 128), (20, 96), (10, 32)))
    return device.major >= 8 and device.sms >= 98 and device.minor != 6 and B % 8 == 0 and B <= 128


def flashrnn(prepared: PreparedLayer) -> Competitor:
    """FlashRNN's LSTM with one head: it takes the input product and returns all states."""
    require_plain(prepared)
    _require_gpu(prepared)
    require("flashrnn", "github.com/NX-AI/flashrnn")
    if prepared.call.L > 1:
        raise AbsentError("FlashRNN runs one layer")
    from flashrnn import flashrnn as run_flashrnn

    T, B, H = prepared.call.case.T, prepared.call.case.B, prepared.call.case.H
    w_ih, w_hh, b_ih, b_hh = prepared.lstm.parameters()
    name = str(prepared.call.dtype).removeprefix("torch.")
    state = None if prepared.state is None else torch.stack([s[0] for s in prepared.state]).view(2, B, 1, 1, H)
    none = torch.zeros(4, 1, H, device=w_hh.device, dtype=w_hh.dtype)  # the bias is in the input product

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        x_gates = F.linear(prepared.rows, w_ih, b_ih + b_hh).view(T, B, 4, 1, H).transpose(0, 1)
        states, last = run_flashrnn(x_gates, w_hh.view(4, 1, H, H), none, states=state, function="lstm", dtype=name)
        return states[0, :, :, 0].transpose(0, 1), last[0, :, -1].transpose(0, 1), last[1, :, -1].transpose(0, 1)

    run = (
        backward_of(forward, [prepared.rows, w_ih, w_hh, b_ih, b_hh], prepared.upstream)
        if prepared.call.train
        else forward
    )
    return Competitor(run, run)


def haste(prepared: PreparedLayer) -> Competitor:
    """haste's LSTM: gate order i, g, f, o, weights transposed, one bias, zero initial state."""
    require_plain(prepared)
    _require_gpu(prepared)
    require("haste_pytorch", "github.com/lmnt-com/haste")
    if prepared.call.L > 1 or prepared.state is not None or prepared.call.dtype != torch.float32:
        raise AbsentError("haste runs one layer from a zero state in float32 here")
    import haste_pytorch

    w_ih, w_hh, b_ih, b_hh = (p.detach() for p in prepared.lstm.parameters())
    module = haste_pytorch.LSTM(prepared.call.case.I, prepared.call.case.H)
    with torch.no_grad():
        module.kernel.copy_(swapped(w_ih.t()))
        module.recurrent_kernel.copy_(swapped(w_hh.t()))
        module.bias.copy_(swapped(b_ih + b_hh))
    leaves = [prepared.rows, module.kernel, module.recurrent_kernel, module.bias]

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        out, (h_n, c_n) = module(prepared.rows)
        return out, h_n, c_n

    if not prepared.call.train:
        return Competitor(forward, forward)
    run = backward_of(forward, leaves, prepared.upstream)

    def compared() -> list[Tensor]:
        *outputs, dx, dkernel, drecurrent, dbias = run()
        return [*outputs, dx, swapped(dkernel).t(), swapped(drecurrent).t(), *[swapped(dbias)] * 2]

    return Competitor(run, compared)


def swapped(value: Tensor) -> Tensor:
    """Gates i, f, g, o in the last dimension to i, g, f, o, or back."""
    i, second, third, o = value.chunk(4, -1)
    return torch.cat([i, third, second, o], -1)


def _require_gpu(prepared: PreparedLayer) -> None:
    if prepared.call.device != "cuda":
        raise AbsentError("this competitor runs on a GPU")
