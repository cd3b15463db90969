"""Torch's switch of TF32 in matrix products follows cuDNN's inside a call, and is put back."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import fastlstm
from fastlstm.backends import device
from fastlstm.ops import weight_gradients
from fastlstm.ops.gemm import matmul

PRECISIONS = [(True, "tf32"), (False, "ieee")]


def _precision():
    return torch.backends.cuda.matmul.fp32_precision


@pytest.mark.parametrize(("allowed", "precision"), PRECISIONS)
@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_products_follow_cudnns_switch_inside_a_call_and_are_as_before_after_it(
    monkeypatch, allowed, precision, before
):
    monkeypatch.setattr(device, "allows_tf32", lambda: allowed)
    original = _precision()
    torch.backends.cuda.matmul.fp32_precision = before
    try:
        with device.products_as_cudnn(torch.float32):
            assert _precision() == precision
        assert _precision() == before
    finally:
        torch.backends.cuda.matmul.fp32_precision = original


def test_overlapping_calls_put_it_back_when_the_last_ends(monkeypatch):
    """Two threads' calls end in any order; the switch must not keep what the first one set."""
    before = _precision()
    monkeypatch.setattr(device, "allows_tf32", lambda: True)
    first, second = device.products_as_cudnn(torch.float32), device.products_as_cudnn(torch.float32)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _precision() == "tf32"
    second.__exit__(None, None, None)
    assert _precision() == before


def test_a_call_that_fails_puts_the_switch_back(monkeypatch):
    before = _precision()
    monkeypatch.setattr(device, "allows_tf32", lambda: True)
    with pytest.raises(RuntimeError, match="shapes"), device.products_as_cudnn(torch.float32):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    assert _precision() == before


def test_half_types_leave_the_switch_alone(monkeypatch):
    monkeypatch.setattr(device, "_set_matmul", lambda value: pytest.fail("set"))
    with device.products_as_cudnn(torch.bfloat16):
        pass


def test_torch_before_2_9_has_bools_for_the_switch(monkeypatch):
    """It has one bool for cuDNN and one for products."""
    old = SimpleNamespace(
        cudnn=SimpleNamespace(allow_tf32=True), cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False))
    )
    monkeypatch.setattr(torch, "backends", old)
    assert device.allows_tf32()
    with device.products_as_cudnn(torch.float32):
        assert old.cuda.matmul.allow_tf32 is True
    assert old.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize(("is_cuda", "expected"), [(True, "tf32"), (False, "none")])
def test_products_with_a_tensor_follow_cudnn_on_a_gpu_only(monkeypatch, is_cuda, expected):
    monkeypatch.setattr(device, "allows_tf32", lambda: True)
    before = _precision()
    torch.backends.cuda.matmul.fp32_precision = "none"
    try:
        with device.products_of(SimpleNamespace(is_cuda=is_cuda, dtype=torch.float32)):
            assert _precision() == expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_gradients_of_weights_and_input_follow_cudnns_switch(monkeypatch):
    events = []

    @contextmanager
    def watched(tensor):
        events.append("in")
        yield
        events.append("out")

    monkeypatch.setattr(weight_gradients, "products_of", watched)
    monkeypatch.setattr(weight_gradients, "matmul", lambda *a, **k: events.append("product") or matmul(*a, **k))
    lstm = fastlstm.LSTM(3, 5)
    x = torch.randn(4, 2, 3, requires_grad=True)
    with fastlstm.backend("reference"):
        lstm(x)[0].sum().backward()
    assert events == ["in", *["product"] * 4, "out"]  # dx, dW_ih, dW_hh from its steps and from the first


def test_a_product_that_cublas_does_not_have_is_made_in_float32(monkeypatch):
    plain, a, b, out = torch.mm, torch.randn(3, 5).half(), torch.randn(5, 7).half(), torch.empty(3, 7)

    def mm(*args, **options):
        if "out_dtype" in options:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return plain(*args, **options)

    monkeypatch.setattr(torch, "mm", mm)
    device.product_into(a, b, out)
    assert torch.equal(out, a.float() @ b.float())
