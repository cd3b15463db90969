"""A default type or device that the user has set changes nothing of a call on tensors of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import fastlstm


@contextmanager
def default(what: str) -> Iterator[None]:
    if what == "device":
        with torch.device("meta"):
            yield
        return
    torch.set_default_dtype(getattr(torch, what))
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("what", ["float64", "bfloat16", "device"])
def test_results_do_not_depend_on_the_default_type_or_device(what: str) -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(4, 2, 3)
    tokens, weight, prime = fastlstm.TokenLSTM(7, 4, 5), torch.randn(7, 5), torch.tensor([1])

    def results() -> list[torch.Tensor]:
        lstm.zero_grad()
        out, state = lstm(x)
        out.backward(torch.ones_like(out))
        stream = lstm.stream(2)
        return [out.detach(), *(v.detach() for v in state), lstm.weight_hh_l0.grad, *(stream.step(row) for row in x)]

    def drawn() -> list[torch.Tensor]:
        return [*fastlstm.decode(tokens, weight, None, prime, 5, log_probs=True)[::2]]

    expected, expected_draw = results(), drawn()
    with default(what):
        again, again_draw = results(), drawn() if what != "device" else expected_draw
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(again_draw, expected_draw)
