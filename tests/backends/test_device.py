"""Torch's switch of TF32 in matrix products follows cuDNN's inside a call, and is put back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastlstm.backends import device

NEW = [(True, "tf32"), (False, "ieee")]


def _now():
    return torch.backends.cuda.matmul.fp32_precision


@pytest.mark.parametrize(("allowed", "word"), NEW)
@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_products_are_cudnns_and_then_as_before(monkeypatch, allowed, word, before):
    monkeypatch.setattr(device, "allows_tf32", lambda: allowed)
    found = _now()
    torch.backends.cuda.matmul.fp32_precision = before
    try:
        with device.products_as_cudnn(torch.float32):
            assert _now() == word
        assert _now() == before
    finally:
        torch.backends.cuda.matmul.fp32_precision = found


def test_overlapping_calls_put_it_back_when_the_last_ends(monkeypatch):
    """Two threads' calls end in any order; the switch must not keep what the first one set."""
    before = _now()
    monkeypatch.setattr(device, "allows_tf32", lambda: True)
    first, second = device.products_as_cudnn(torch.float32), device.products_as_cudnn(torch.float32)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _now() == "tf32"
    second.__exit__(None, None, None)
    assert _now() == before


def test_a_call_that_fails_puts_it_back(monkeypatch):
    before = _now()
    monkeypatch.setattr(device, "allows_tf32", lambda: True)
    with pytest.raises(RuntimeError, match="shapes"), device.products_as_cudnn(torch.float32):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    assert _now() == before


def test_half_types_leave_it_alone(monkeypatch):
    monkeypatch.setattr(device, "_set_matmul", lambda value: pytest.fail("set"))
    with device.products_as_cudnn(torch.bfloat16):
        pass


def test_a_torch_before_2_9(monkeypatch):
    """It has one bool for cuDNN and one for products."""
    old = SimpleNamespace(
        cudnn=SimpleNamespace(allow_tf32=True), cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False))
    )
    monkeypatch.setattr(torch, "backends", old)
    assert device.allows_tf32()
    with device.products_as_cudnn(torch.float32):
        assert old.cuda.matmul.allow_tf32 is True
    assert old.cuda.matmul.allow_tf32 is False
