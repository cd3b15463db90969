"""Int8LSTM.stream: one step at a time gives what the sequence gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.backends import native

KERNELS = native.load().int8_isa_names() if native.unavailable() is None else [""]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("proj_size", [0, 7])
@pytest.mark.parametrize("B", [1, 3, 33])
def test_steps_give_what_the_sequence_gives(B: int, proj_size: int, kernels: str) -> None:
    lstm = fastlstm.quantize(nn.LSTM(9, 33, 3, proj_size=proj_size))
    stream, x = lstm.stream(B), torch.randn(6, B, 9)
    isa = native.load().int8_isa() if kernels else ""
    try:
        if kernels:
            native.load().set_int8_isa(kernels)
        expected, (h, c) = lstm(x)
        steps = torch.stack([stream.step(x[t]) for t in range(4)])
        stream.state = stream.state
        steps = torch.cat([steps, torch.stack([stream.step(x[t]) for t in (4, 5)])])
    finally:
        if kernels:
            native.load().set_int8_isa(isa)
    torch.testing.assert_close(steps, expected, rtol=0, atol=0)
    torch.testing.assert_close(stream.state, (h, c), rtol=0, atol=0)


def test_threads_change_no_bit_of_a_step() -> None:
    lstm, x, threads = fastlstm.quantize(nn.LSTM(129, 257, 2)), torch.randn(4, 129), torch.get_num_threads()
    outs = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            stream = lstm.stream(4)
            outs.append(torch.stack([stream.step(x) for _ in range(3)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_a_stream_without_the_native_module_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, x = fastlstm.quantize(nn.LSTM(9, 33, 2, proj_size=5)), torch.randn(2, 9)
    expected = lstm.stream(2).step(x)
    monkeypatch.setattr(lstm, "packed_layers", lambda: None)
    torch.testing.assert_close(lstm.stream(2).step(x), expected, rtol=0, atol=1e-3)


def test_reset_and_wrong_arguments() -> None:
    stream = fastlstm.quantize(nn.LSTM(3, 5)).stream(2)
    first = stream.step(torch.ones(2, 3))
    stream.reset(torch.tensor([True, False]))
    again = stream.step(torch.ones(2, 3))
    assert torch.equal(again[0], first[0])
    assert not torch.equal(again[1], first[1])
    assert stream.dtype is torch.int8
    with pytest.raises(ValueError, match=r"x is torch.float32 with shape \[3, 3\] on cpu, expected a floating tensor"):
        stream.step(torch.ones(3, 3))
    with pytest.raises(ValueError, match="batch_size is 0, expected a positive int"):
        fastlstm.quantize(nn.LSTM(3, 5)).stream(0)
    with pytest.raises(ValueError, match="a bidirectional LSTM cannot be streamed"):
        fastlstm.quantize(nn.LSTM(3, 5, bidirectional=True)).stream()
