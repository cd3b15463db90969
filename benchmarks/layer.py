"""Workloads of LSTM layers: forward, training step, packed, projected, bidirectional, one step, stream.

Inputs, states, gradients and the weights of the first layer are drawn by `fastlstm.testing.cases.make`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastlstm
from benchmarks.workload import ALLOWED, ContenderCall, Workload, chosen_by_dispatch, fastlstm_contenders, same_weights
from fastlstm.testing.cases import Case, make, make_grads

LSTMState = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerCall:
    """A case and how it is called: L layers, one or two directions.

    train: with the backward into input and weights; autocast: to bfloat16, of tensors in `dtype`.
    """

    case: Case
    L: int = 1
    bidirectional: bool = False
    train: bool = True
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    autocast: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def flops(self) -> float:
        """Multiply-adds × 2 of one call; a training step takes three times a forward."""
        c, total, width = self.case, 0, self.case.I
        for _ in range(self.L):
            total += self.directions * 2 * c.N * (4 * c.H * (width + c.P) + (c.P * c.H if c.projection else 0))
            width = c.P * self.directions
        return float(total * (3 if self.train else 1))


def shape(
    T: int, B: int, H: int, I: int | None = None, P: int = 0, packed: bool = False, initial: bool = False
) -> Case:
    """Return a case for timing. I: H if None; P: projection, 0 for none; packed: lengths T … T / 4 over the batch."""
    lengths = tuple(torch.linspace(T, T / 4, B).long().tolist()) if packed else ()
    I = H if I is None else I
    return Case(f"T{T}B{B}I{I}H{H}", T, B, I, H, P or H, lengths=lengths, initial=initial, projection=P > 0)


@dataclass(frozen=True)
class PreparedLayer:
    """The module and the tensors of a call.

    Attributes:
        call: the call.
        lstm: nn.LSTM with the weights of the case.
        rows: (T, B, I), or the packed rows (N, I).
        batch_sizes: (T,) of a packed input, else None.
        state: h0 (L, B, P) and c0 (L, B, H), or None.
        upstream: the gradient of the output.
    """

    call: LayerCall
    lstm: nn.LSTM
    rows: Tensor
    batch_sizes: Tensor | None
    state: LSTMState | None
    upstream: Tensor

    def x(self) -> Tensor | PackedSequence:
        return self.rows if self.batch_sizes is None else PackedSequence(self.rows, self.batch_sizes)


def prepare(call: LayerCall) -> PreparedLayer:
    """Draw the tensors of a call."""
    case, factory = call.case, {"device": call.device, "dtype": call.dtype}
    inputs = make(case, call.dtype, device=call.device)
    proj = case.P if case.projection else 0
    lstm = nn.LSTM(case.I, case.H, call.L, proj_size=proj, bidirectional=call.bidirectional, **factory)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(inputs.w_x)
        lstm.weight_hh_l0.copy_(inputs.w_hh)
    state = None
    if case.initial:
        n = call.L * call.directions
        state = tuple(s.to(call.dtype).expand(n, -1, -1).contiguous() for s in (inputs.h0, inputs.c0))
    upstream = torch.cat([make_grads(case, call.dtype, device=call.device).dh] * call.directions, -1)
    return PreparedLayer(call, lstm, inputs.x.requires_grad_(call.train), inputs.batch_sizes, state, upstream)


def layer(call: LayerCall) -> Workload:
    """Forward, or forward and backward with all gradients."""
    prepared = prepare(call)
    fused_lstm = same_weights(fastlstm_like(prepared.lstm), prepared.lstm)
    runs = {
        **dict.fromkeys(fastlstm_contenders(call.device), step(fused_lstm, prepared)),
        "torch": step(prepared.lstm, prepared),
    }
    with torch.set_grad_enabled(call.train):
        chosen = chosen_by_dispatch(fused_lstm, prepared.x())
    half = call.device == "cpu" and (call.autocast or call.dtype == torch.bfloat16)
    read = prepared.rows.element_size() * float(sum(p.numel() for p in prepared.lstm.parameters()))
    return Workload(
        runs,
        exact=_in_float32(prepared) if half else None,
        dtype=torch.bfloat16 if call.autocast else call.dtype,
        device=call.device,
        grad=call.train,
        flops=call.flops,
        bytes=read,
        chosen=chosen,
        prepared=prepared,
    )


def _in_float32(prepared: PreparedLayer) -> ContenderCall:
    """The truth for bfloat16: nn.LSTM on the same numbers in float32.

    nn.LSTM in bfloat16 is none: with AMX its gradients from H = 1024 on are wrong (torch 2.13: that of x by 119 %).
    """
    rows = prepared.rows.detach().float().requires_grad_(prepared.call.train)
    state = None if prepared.state is None else tuple(v.float() for v in prepared.state)
    call = replace(prepared.call, dtype=torch.float32, autocast=False)
    lstm, upstream = copy.deepcopy(prepared.lstm).float(), prepared.upstream.float()
    return step(lstm, replace(prepared, call=call, lstm=lstm, rows=rows, state=state, upstream=upstream))


def fastlstm_like(torch_lstm: nn.LSTM) -> fastlstm.LSTM:
    """Return a fastlstm.LSTM of the same sizes, type and device."""
    w = torch_lstm.weight_ih_l0
    sizes = (torch_lstm.input_size, torch_lstm.hidden_size, torch_lstm.num_layers)
    options = {"proj_size": torch_lstm.proj_size, "bidirectional": torch_lstm.bidirectional}
    return fastlstm.LSTM(*sizes, **options, device=w.device, dtype=w.dtype)


def step(lstm: nn.Module, prepared: PreparedLayer) -> ContenderCall:
    """Return a function that calls `lstm` once: forward, or forward and backward."""

    def forward(x: Tensor | PackedSequence) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(prepared.call.device, torch.bfloat16, enabled=prepared.call.autocast):
            return _flat(lstm(x, prepared.state))

    if prepared.call.train:
        leaves = [prepared.rows, *lstm.parameters()]
        return backward_of(lambda: forward(prepared.x()), leaves, prepared.upstream)
    x = prepared.x()
    return lambda: forward(x)


def _flat(result: tuple[Tensor | PackedSequence, LSTMState]) -> tuple[Tensor, Tensor, Tensor]:
    out, (h_n, c_n) = result
    return (out.data if isinstance(out, PackedSequence) else out), h_n, c_n


def backward_of(forward: Callable[[], tuple[Tensor, ...]], leaves: list[Tensor], upstream: Tensor) -> ContenderCall:
    """Return a function that runs forward and backward.

    It returns the outputs of `forward`, then the gradients of `leaves`. `upstream` is the gradient of the first output.
    """

    def run() -> tuple[Tensor, ...]:
        outputs = forward()
        return (*(y.detach() for y in outputs), *torch.autograd.grad(outputs[0], leaves, upstream))

    return run


STREAM_STEPS = 8  # from a zero state; enough for the error of the rounded weights to show


def stream(L: int, H: int, dtype: torch.dtype = torch.bfloat16) -> Workload:
    """STREAM_STEPS steps of `lstm.stream` with weights in `dtype`, beside calls of nn.LSTM in float32; both carry the state."""
    torch_lstm = nn.LSTM(H, H, L)
    lstm = same_weights(fastlstm.LSTM(H, H, L), torch_lstm)
    x = torch.randn(STREAM_STEPS, 1, H)
    stepper = lstm.stream(1, dtype)

    def streamed() -> list[Tensor]:
        stepper.reset()
        return [stepper.step(row) for row in x]

    def module_calls() -> list[Tensor]:
        outputs, state = [], None
        for row in x:
            out, state = torch_lstm(row[None], state)
            outputs.append(out[0])
        return outputs

    runs = {"cpu": streamed, "dispatched": streamed, "torch": module_calls}
    read = torch.finfo(dtype).bits / 8 * sum(p.numel() for p in torch_lstm.parameters()) * len(x)
    allowed = dict.fromkeys(("cpu", "dispatched"), ALLOWED[dtype])
    return Workload(runs, grad=False, chosen="cpu", bytes=read, allowed=allowed)
