"""What rounding to 8 bits costs: the error of h over long sequences, and the loss of a trained model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.charlm import CharLM


@pytest.mark.parametrize("H", [128, 512])
def test_the_error_of_h_does_not_grow_over_1000_steps(H: int) -> None:
    torch.manual_seed(0)
    lstm, x = nn.LSTM(H, H).eval(), torch.randn(1000, 2, H)
    with torch.no_grad():
        error = fastlstm.quantize(lstm)(x)[0] - lstm(x)[0]
    assert error.abs().max() < 0.03
    assert error.square().mean().sqrt() < 0.003
    assert error[900:].square().mean() < 1.5 * error[:100].square().mean()


def test_a_trained_model_loses_less_than_a_hundredth_of_a_nat() -> None:
    lm = CharLM.load("names")
    texts = lm.sample(num=200, seed=1)
    before = [scored.total for scored in lm.score(texts)]
    lm.model = fastlstm.quantize(lm.model)
    after = [scored.total for scored in lm.score(texts)]
    characters = sum(len(text) + 1 for text in texts)
    assert sum(before) / characters > 1
    assert abs(sum(after) - sum(before)) / characters < 0.01
