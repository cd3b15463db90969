"""Models to draw from, and what a Python loop over nn.LSTM makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastlstm


class Model(NamedTuple):
    rnn: fastlstm.TokenLSTM
    out: nn.Linear

    @property
    def args(self) -> tuple[fastlstm.TokenLSTM, Tensor, Tensor]:
        return self.rnn, self.out.weight, self.out.bias


def make_model(V: int, E: int | None, H: int, L: int, P: int = 0, bias: bool = True, spread: float = 3.0) -> Model:
    """A TokenLSTM and a linear layer with weights `spread` times as large as usual: scores that differ."""
    model = Model(fastlstm.TokenLSTM(V, E, H, L, bias=bias, proj_size=P), nn.Linear(P or H, V))
    with torch.no_grad():
        for p in [*model.rnn.parameters(), *model.out.parameters()]:
            p.mul_(spread)
    return model


class Loop:
    """The same model in another type, of torch's parts alone, fed id by id."""

    def __init__(self, model: Model, dtype: torch.dtype = torch.float64) -> None:
        rnn = model.rnn
        self.V, self.dtype = rnn.num_embeddings, dtype
        self.rows = torch.eye(self.V) if rnn.embedding is None else rnn.embedding.weight.detach()
        self.rows = self.rows.to(dtype)
        L, P = rnn.num_layers, rnn.lstm.proj_size
        self.lstm = nn.LSTM(self.rows.shape[1], rnn.hidden_size, L, bias=rnn.lstm.bias, proj_size=P, dtype=dtype)
        self.lstm.load_state_dict(rnn.lstm.state_dict())
        self.out = nn.Linear(P or rnn.hidden_size, self.V, dtype=dtype)
        self.out.load_state_dict(model.out.state_dict())

    @torch.no_grad()
    def scores(self, ids: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """ids (T, B) → scores (T, B, V) and the state."""
        h, state = self.lstm(self.rows[ids], state)
        return self.out(h), state

    def argmax(self, prime: Tensor, length: int) -> Tensor:
        """`length` most likely ids after the prime, (n, B), each fed back."""
        rows, (ids, state) = [], (prime, None)
        for _ in range(length):
            scores, state = self.scores(ids, state)
            ids = scores[-1:].argmax(2)
            rows.append(ids)
        return torch.cat(rows)
