"""Every route is visible to torch.profiler: a call shows the op, and backward its autograd node."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, schedule

import fastlstm


def _names(profiler: profile) -> set[str]:
    return {event.key for event in profiler.key_averages()}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 2, 3), (4, 3), (9, 2, 3)], ids=str)
def test_a_call_shows_the_op(shape: tuple[int, ...], gradients: bool) -> None:
    """Up to four rows without gradients are one native call otherwise; more rows, or gradients, the fused route."""
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(shape)
    with warnings.catch_warnings(), torch.set_grad_enabled(gradients):
        warnings.simplefilter("ignore")
        lstm(x)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            out = lstm(x)[0]
            if gradients:
                out.sum().backward()
    assert {"fastlstm::lstm_forward", *["ForwardBackward"] * gradients} <= _names(profiler)


def test_backward_of_a_call_before_the_profiler_shows_its_node() -> None:
    loss = fastlstm.LSTM(3, 5)(torch.randn(9, 2, 3))[0].sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            loss.backward()
    assert any(name.endswith("Backward") and "LSTM" in name for name in _names(profiler))


def test_only_the_active_steps_of_a_schedule_are_seen() -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(1, 1, 3)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        steps = schedule(wait=1, warmup=1, active=1, repeat=1)
        with profile(activities=[ProfilerActivity.CPU], schedule=steps) as profiler:
            for _ in range(3):
                lstm(x)
                profiler.step()
    calls = [event for event in profiler.key_averages() if event.key == "fastlstm::lstm_forward"]
    assert [event.count for event in calls] == [1]
