"""A model that somebody else trained: Resemblyzer's speaker encoder, from its wheel on PyPI."""

from __future__ import annotations

import copy
from importlib import util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm.testing import accuracy


def _trained_weights() -> Path | None:
    """The weights in Resemblyzer's wheel, which need nothing else of it."""
    spec = util.find_spec("resemblyzer")
    path = Path(spec.origin).parent / "pretrained.pt" if spec and spec.origin else None
    return path if path and path.is_file() else None


@pytest.mark.skipif(
    _trained_weights() is None, reason="Resemblyzer is not installed; pip install --no-deps Resemblyzer (16 MB)"
)
def test_a_trained_speaker_encoder_gives_the_same_after_replace() -> None:
    """Three layers of 256 units that somebody trained: embeddings and gradients agree after `replace`."""
    weights = torch.load(_trained_weights(), map_location="cpu", weights_only=True)["model_state"]
    lstm = nn.LSTM(40, 256, 3, batch_first=True)
    lstm.load_state_dict({k.removeprefix("lstm."): v for k, v in weights.items() if k.startswith("lstm.")})
    head = nn.Linear(256, 256)
    head.load_state_dict({k.removeprefix("linear."): v for k, v in weights.items() if k.startswith("linear.")})
    mels = torch.rand(2, 30, 40).cumsum(1).sin().square() * 0.2  # as loud as speech

    def results(lstm: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        lstm.to(dtype).zero_grad()
        x = mels.to(dtype, copy=True).requires_grad_()
        _, (h, _) = lstm(x)
        embedding = nn.functional.normalize(head.to(dtype)(h[-1]).relu(), dim=1)
        (embedding @ embedding.mT).sum().backward()
        return [embedding.detach(), x.grad, *(p.grad.clone() for p in lstm.parameters())]

    by_torch, exact = results(lstm, torch.float32), results(copy.deepcopy(lstm), torch.float64)
    by_fastlstm = results(fastlstm.replace(lstm), torch.float32)
    assert type(lstm) is fastlstm.LSTM
    names = ["embedding", "x", *(n for n, _ in lstm.named_parameters())]
    for name, a, b, c in zip(names, by_fastlstm, exact, by_torch, strict=True):
        accuracy.check(name, a, b, c)
