"""Work of one layer (or a few): forward, training step, packed, projected, bidirectional, one step, stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from benchmarks.work import ALLOWED, Run, Work, chosen_by_dispatch, columns, same_weights

Input = Tensor | PackedSequence


def layer(
    T: int,
    B: int,
    H: int,
    *,
    I: int | None = None,
    L: int = 1,
    P: int = 0,
    bidirectional: bool = False,
    packed: bool = False,
    train: bool = True,
    device: str = "cpu",
) -> Work:
    """Forward, or forward and backward with all gradients, of an LSTM on (T, B, I).

    I: H where None; P: projection; packed: lengths T … T / 4 over the batch; train: also backward, into x and weights.
    """
    I = H if I is None else I
    theirs = nn.LSTM(I, H, L, proj_size=P, bidirectional=bidirectional, device=device)
    ours = same_weights(fastlstm.LSTM(I, H, L, proj_size=P, bidirectional=bidirectional, device=device), theirs)
    data = torch.randn(T, B, I, device=device, requires_grad=train)
    lengths = torch.linspace(T, T / 4, B).long() if packed else torch.full((B,), T)
    rows, width = int(lengths.sum()), (P or H) * (2 if bidirectional else 1)
    upstream = torch.randn(*((rows,) if packed else (T, B)), width, device=device)

    def step(lstm: nn.Module) -> Run:
        if not train:
            return inference(lstm, x_of(data, lengths, packed))
        return training(lstm, data, lambda: x_of(data, lengths, packed), upstream)

    x = x_of(data, lengths, packed)
    runs = {**dict.fromkeys(columns(device), step(ours)), "torch": step(theirs)}
    flops = layer_flops(rows, I, H, P, L, 2 if bidirectional else 1) * (3 if train else 1)
    with torch.set_grad_enabled(train):
        chosen = chosen_by_dispatch(ours, x)
    return Work(runs, grad=train, flops=flops, chosen=chosen, notes={"theirs": theirs, "x": x})


def x_of(data: Tensor, lengths: Tensor, packed: bool) -> Input:
    return pack_padded_sequence(data, lengths) if packed else data


def inference(lstm: nn.Module, x: Input, state: tuple[Tensor, Tensor] | None = None) -> Run:
    """A forward call: output and final states."""

    def run() -> tuple[Tensor, ...]:
        out, (h_n, c_n) = lstm(x, state)
        return out.data, h_n, c_n

    return run


def training(lstm: nn.Module, data: Tensor, x: Callable[[], Input], upstream: Tensor) -> Run:
    """Forward and backward: output, final states, gradients of data and of every weight. Packing is part of it."""
    leaves = [data, *lstm.parameters()]

    def run() -> tuple[Tensor, ...]:
        out, (h_n, c_n) = lstm(x())
        return (out.data.detach(), h_n.detach(), c_n.detach(), *torch.autograd.grad(out_data(out), leaves, upstream))

    return run


def out_data(out: Input) -> Tensor:
    return out.data if isinstance(out, PackedSequence) else out


def layer_flops(rows: int, I: int, H: int, P: int, L: int, directions: int) -> float:
    """Multiply-adds × 2 of a forward over `rows` (T·B) rows; a training step takes three times as many."""
    total, width, out = 0, I, P or H
    for _ in range(L):
        total += directions * 2 * rows * (4 * H * (width + out) + (P * H if P else 0))
        width = out * directions
    return float(total)


def one_step(L: int, H: int, device: str = "cpu") -> Work:
    """A module call for one step of one sequence with a given state, without gradients."""
    theirs = nn.LSTM(H, H, L, device=device)
    ours = same_weights(fastlstm.LSTM(H, H, L, device=device), theirs)
    x, state = torch.randn(1, 1, H, device=device), tuple(torch.randn(2, L, 1, H, device=device))
    runs = {**dict.fromkeys(columns(device), inference(ours, x, state)), "torch": inference(theirs, x, state)}
    with torch.no_grad():
        chosen = chosen_by_dispatch(ours, x)
    return Work(
        runs, grad=False, chosen=chosen, bytes=4.0 * weights(theirs), notes={"theirs": theirs, "x": x, "state": state}
    )


def weights(module: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in module.parameters())


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

    size = torch.finfo(dtype).bits / 8
    runs = {"cpu": mine, "dispatched": mine, "torch": other}
    allowed = dict.fromkeys(("cpu", "dispatched"), ALLOWED[dtype])
    return Work(runs, grad=False, chosen="cpu", bytes=size * weights(theirs) * len(x), allowed=allowed)
