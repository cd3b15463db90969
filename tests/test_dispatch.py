"""Which path a call on the CPU takes without being told."""

from __future__ import annotations

import pytest
import torch

import fastlstm

H, B = 1024, 48  # from here on torch's own path was measured faster for dense float32 calls


def _plan(lstm: fastlstm.LSTM, x: torch.Tensor, **options) -> str:
    with torch.no_grad():
        lstm(x, **options)
    return fastlstm.last_plan().split(":")[0]


@pytest.mark.parametrize(("hidden", "rows", "expected"), [(H, B, "torch"), (H, B - 1, "cpu"), (H - 1, B, "cpu")])
def test_the_measured_rule(hidden: int, rows: int, expected: str) -> None:
    assert _plan(fastlstm.LSTM(3, hidden), torch.randn(2, rows, 3)) == expected


def test_only_the_plain_case_goes_to_torch() -> None:
    x = torch.randn(2, B, 3)
    assert _plan(fastlstm.LSTM(3, H), x, reset=torch.zeros(2, B, dtype=torch.bool)) == "cpu"
    assert _plan(fastlstm.LSTM(3, H), x, return_cell_states=True) == "cpu"
    assert _plan(fastlstm.LSTM(3, H, dtype=torch.float64), x.double()) == "cpu"
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.full((B,), 2))
    assert _plan(fastlstm.LSTM(3, H), packed) == "cpu"


def test_recomputing_stays_where_memory_is_saved() -> None:
    out, _ = fastlstm.LSTM(3, H, recompute=True)(torch.randn(2, B, 3))
    assert fastlstm.last_plan().startswith("cpu")
    out.sum().backward()


def test_forced_goes_before_the_rule() -> None:
    with fastlstm.backend("cpu"):
        assert _plan(fastlstm.LSTM(3, H), torch.randn(2, B, 3)) == "cpu"
