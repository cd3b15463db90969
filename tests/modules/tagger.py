"""A model to be quantised, for the tests."""

from __future__ import annotations

import torch
from torch import nn


class Tagger(nn.Module):
    """An LSTM between other layers, one of them with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(11, 8), nn.LSTM(8, 33), nn.Linear(33, 11)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(ids))[0])
