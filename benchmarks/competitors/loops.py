"""A Python loop over nn.LSTMCell, as it is and through torch.compile."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.competitors import AbsentError, Competitor, require_plain
from benchmarks.layer import PreparedLayer, backward_of

CellLoop = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def cells(prepared: PreparedLayer) -> Competitor:
    """One nn.LSTMCell per layer, called step by step."""
    require_plain(prepared)
    return _looped(prepared, loop_of(prepared.lstm))


def compiled(prepared: PreparedLayer) -> Competitor:
    """The same loop as one graph; its T steps are unrolled, so compiling takes most of a minute."""
    require_plain(prepared)
    if shutil.which("c++") is None and prepared.call.device == "cpu":
        raise AbsentError("torch.compile needs a C++ compiler; install g++")
    return _looped(prepared, torch.compile(loop_of(prepared.lstm), fullgraph=True, dynamic=False))


def loop_of(lstm: nn.LSTM) -> CellLoop:
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


def _looped(prepared: PreparedLayer, loop: CellLoop) -> Competitor:
    lstm, B = prepared.lstm, prepared.call.case.B
    zero = prepared.rows.new_zeros(lstm.num_layers, B, lstm.hidden_size)
    state = (zero, zero) if prepared.state is None else prepared.state
    if prepared.call.train:
        run = backward_of(lambda: loop(prepared.rows, *state), [prepared.rows, *lstm.parameters()], prepared.upstream)
    else:

        def run() -> tuple[Tensor, ...]:
            return loop(prepared.rows, *state)

    return Competitor(run, run)
