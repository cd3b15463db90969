"""A Python loop over nn.LSTMCell, as it is and through torch.compile."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.layer import Ready, backward_of
from benchmarks.peers import AbsentError, Peer, plain

Loop = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def cells(made: Ready) -> Peer:
    """One nn.LSTMCell a layer, called step by step."""
    plain(made)
    return _peer(made, loop_of(made.lstm))


def compiled(made: Ready) -> Peer:
    """The same loop as one graph; its T steps are unrolled, so compiling takes most of a minute."""
    plain(made)
    if shutil.which("c++") is None and made.call.device == "cpu":
        raise AbsentError("torch.compile needs a C++ compiler; install g++")
    return _peer(made, torch.compile(loop_of(made.lstm), fullgraph=True, dynamic=False))


def loop_of(lstm: nn.LSTM) -> Loop:
    """x (T, B, I), h0 and c0 (L, B, H) → output, h_n, c_n, on the parameters of `lstm`."""
    layers = [_cell(lstm, k) for k in range(lstm.num_layers)]

    def loop(x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c, out = list(h0.unbind()), list(c0.unbind()), []
        for y in x.unbind():
            for k, cell in enumerate(layers):
                h[k], c[k] = cell(y, (h[k], c[k]))
                y = h[k]
            out.append(y)
        return torch.stack(out), torch.stack(h), torch.stack(c)

    return loop


def _cell(lstm: nn.LSTM, k: int) -> nn.LSTMCell:
    cell = nn.LSTMCell(lstm.input_size if k == 0 else lstm.hidden_size, lstm.hidden_size, device="meta")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(lstm, f"{name}_l{k}"))
    return cell


def _peer(made: Ready, loop: Loop) -> Peer:
    lstm, B = made.lstm, made.call.case.B
    zero = made.rows.new_zeros(lstm.num_layers, B, lstm.hidden_size)
    state = (zero, zero) if made.state is None else made.state
    if made.call.train:
        run = backward_of(lambda: loop(made.rows, *state), [made.rows, *lstm.parameters()], made.upstream)
    else:

        def run() -> tuple[Tensor, ...]:
            return loop(made.rows, *state)

    return Peer(run, run)
