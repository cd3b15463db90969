"""Work of LSTM layers: forward, training step, packed, projected, bidirectional, one step, stream.

The tensors are those of the shared table of cases (fastlstm/testing/cases.py); the first layer's weights too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastlstm
from benchmarks.work import ALLOWED, Run, Work, chosen_by_dispatch, columns, same_weights
from fastlstm.testing.cases import Case, make, make_grads

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """How a case is called. train: backward too, into input and weights; state: with a given initial state."""

    case: Case
    L: int = 1
    bidirectional: bool = False
    train: bool = True
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

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
    """A case for timing. I: H where None; P: projection, 0 for none; packed: lengths T … T / 4 over the batch."""
    lengths = tuple(torch.linspace(T, T / 4, B).long().tolist()) if packed else ()
    I = H if I is None else I
    return Case(f"T{T}B{B}I{I}H{H}", T, B, I, H, P or H, lengths=lengths, initial=initial, projection=P > 0)


@dataclass(frozen=True)
class Ready:
    """A call made ready: nn.LSTM with the case's weights, its input and state, and the gradient from above."""

    call: Call
    lstm: nn.LSTM
    rows: Tensor
    batch_sizes: Tensor | None
    state: State | None
    upstream: Tensor

    def x(self) -> Tensor | PackedSequence:
        return self.rows if self.batch_sizes is None else PackedSequence(self.rows, self.batch_sizes)


def ready(call: Call) -> Ready:
    """Draw the tensors of a call."""
    case, kind = call.case, {"device": call.device, "dtype": call.dtype}
    inputs = make(case, call.dtype, device=call.device)
    proj = case.P if case.projection else 0
    lstm = nn.LSTM(case.I, case.H, call.L, proj_size=proj, bidirectional=call.bidirectional, **kind)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(inputs.w_x)
        lstm.weight_hh_l0.copy_(inputs.w_hh)
    state = None
    if case.initial:
        n = call.L * call.directions
        state = tuple(s.to(call.dtype).expand(n, -1, -1).contiguous() for s in (inputs.h0, inputs.c0))
    upstream = torch.cat([make_grads(case, call.dtype, device=call.device).dh] * call.directions, -1)
    return Ready(call, lstm, inputs.x.requires_grad_(call.train), inputs.batch_sizes, state, upstream)


def layer(call: Call) -> Work:
    """Forward, or forward and backward with all gradients."""
    made = ready(call)
    ours = same_weights(fastlstm_like(made.lstm), made.lstm)
    runs = {**dict.fromkeys(columns(call.device), step(ours, made)), "torch": step(made.lstm, made)}
    with torch.set_grad_enabled(call.train):
        chosen = chosen_by_dispatch(ours, made.x())
    read = made.rows.element_size() * float(sum(p.numel() for p in made.lstm.parameters()))
    return Work(runs, dtype=call.dtype, grad=call.train, flops=call.flops, bytes=read, chosen=chosen, made=made)


def fastlstm_like(theirs: nn.LSTM) -> fastlstm.LSTM:
    """A fastlstm.LSTM of the same sizes, type and device."""
    w = theirs.weight_ih_l0
    sizes = (theirs.input_size, theirs.hidden_size, theirs.num_layers)
    options = {"proj_size": theirs.proj_size, "bidirectional": theirs.bidirectional}
    return fastlstm.LSTM(*sizes, **options, device=w.device, dtype=w.dtype)


def step(lstm: nn.Module, made: Ready) -> Run:
    """One call of `lstm` as `made` says: forward, or forward and backward."""
    if made.call.train:
        return backward_of(lambda: _flat(lstm(made.x(), made.state)), [made.rows, *lstm.parameters()], made.upstream)
    x = made.x()
    return lambda: _flat(lstm(x, made.state))


def _flat(result: tuple[Tensor | PackedSequence, State]) -> tuple[Tensor, Tensor, Tensor]:
    out, (h_n, c_n) = result
    return (out.data if isinstance(out, PackedSequence) else out), h_n, c_n


def backward_of(forward: Callable[[], tuple[Tensor, ...]], leaves: list[Tensor], upstream: Tensor) -> Run:
    """Forward and backward: what forward returns (its first result gets `upstream`), then the gradients of `leaves`."""

    def run() -> tuple[Tensor, ...]:
        found = forward()
        return (*(y.detach() for y in found), *torch.autograd.grad(found[0], leaves, upstream))

    return run


STREAM_STEPS = 8  # compared from a zero state; the error of rounded weights has then shown itself


def stream(L: int, H: int, dtype: torch.dtype = torch.bfloat16) -> Work:
    """Steps of `lstm.stream` with weights held in `dtype`, against calls of nn.LSTM in float32; state carried."""
    theirs = nn.LSTM(H, H, L)
    ours = same_weights(fastlstm.LSTM(H, H, L), theirs)
    x = torch.randn(STREAM_STEPS, 1, H)
    flow = ours.stream(1, dtype)

    def mine() -> list[Tensor]:
        flow.reset()
        return [flow.step(row) for row in x]

    def other() -> list[Tensor]:
        found, state = [], None
        for row in x:
            out, state = theirs(row[None], state)
            found.append(out[0])
        return found

    runs = {"cpu": mine, "dispatched": mine, "torch": other}
    read = torch.finfo(dtype).bits / 8 * sum(p.numel() for p in theirs.parameters()) * len(x)
    allowed = dict.fromkeys(("cpu", "dispatched"), ALLOWED[dtype])
    return Work(runs, grad=False, chosen="cpu", bytes=read, allowed=allowed)
