"""modules/call.py: what autocast makes of a call."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastlstm
from fastlstm.modules import call, layers
from fastlstm.ops import autocast, gemm
from fastlstm.ops.cell import Stack


@pytest.mark.parametrize("chosen", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda_is_float16(chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch has it for cuDNN, whichever half type autocast was given; float64 stays."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: chosen)
    with FakeTensorMode():
        x, h = torch.empty(3, 2, 5, device="cuda"), torch.empty(1, 2, 4, device="cuda")
        w, w64 = torch.empty(16, 5, device="cuda"), torch.empty(16, 4, device="cuda", dtype=torch.float64)
        x, hx, weights = call._autocast(x, (h, h), [w, w64])
    assert [v.dtype for v in (x, *hx, *weights)] == [*[torch.float16] * 4, torch.float64]


@pytest.mark.parametrize("off", ["cudnn", "hip"])
def test_autocast_on_cuda_without_cudnn_keeps_the_type_it_was_given(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    if off == "hip":
        monkeypatch.setattr(torch.version, "hip", "6.0")
    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=off != "cudnn"):
        assert autocast.autocast_type(torch.empty(3, device="cuda")) == torch.bfloat16


@pytest.mark.parametrize("on_gpu", [True, False])
def test_torch_s_kernels_get_uncast_tensors_on_a_gpu_and_cast_ones_elsewhere(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that we had cast would be copied into one buffer at every call there; elsewhere torch leaves some as they are."""
    seen = []

    def torch_lstm(x, hx, weights, *options):
        seen.extend([x, *hx, *weights, torch.is_autocast_enabled("cpu")])
        return x, *hx

    monkeypatch.setattr(layers, "torch_lstm", torch_lstm)
    lstm, h = fastlstm.LSTM(3, 5), torch.zeros(1, 2, 5)
    uncast, cast = (
        (SimpleNamespace(is_cuda=on_gpu, device=torch.device("cpu")), (h, h), weights)
        for weights in (list(lstm.parameters()), [h])
    )
    x, hx, weights = cast
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layers.run_torch(call.Call(Stack.of(lstm), x, None, None, hx, weights, before_autocast=uncast))
    expected = uncast if on_gpu else cast
    assert seen[-1] == on_gpu
    assert all(a is b for a, b in zip(seen[:-1], [expected[0], *expected[1], *expected[2]], strict=True))


def _types(lstm: torch.nn.Module, x: torch.Tensor | PackedSequence) -> list[torch.dtype]:
    out, (h, c) = lstm(x)
    return [out.data.dtype, h.dtype, c.dtype]


@pytest.mark.parametrize("backend", ["torch", "cpu", None])
@pytest.mark.parametrize("way", ["eager", "compiled", "traced", "exported"])
def test_autocast_gives_bfloat16_with_every_backend(backend: str | None, way: str) -> None:
    lstm, x = fastlstm.LSTM(3, 5, 2), torch.randn(4, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), fastlstm.backend(backend):
        if way == "compiled":
            run = torch.compile(lstm, backend="aot_eager")
            dtypes = _types(run, x.requires_grad_())
        elif way == "traced":
            dtypes = _types(torch.jit.trace(lstm, x, check_trace=False), x)
        elif way == "exported":
            dtypes = _types(torch.export.export(lstm, (x,)).module(), x)
        else:
            dtypes = _types(lstm, x)
    assert dtypes == [torch.bfloat16] * 3


@pytest.mark.parametrize("embedding", [None, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_ids_follow_the_type_of_the_call_not_of_autocast(
    embedding: int | None, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, where bfloat16 was asked for and a call is float16: nothing may follow autocast after the cast."""
    monkeypatch.setattr(call, "autocast_type", lambda value, packed=False: torch.float16)
    lstm, ids = fastlstm.TokenLSTM(7, embedding, 5, 2, bidirectional=True), torch.randint(7, (4, 2))
    tokens = pack_sequence([ids[:, 0], ids[:2, 1]]) if packed else ids
    monkeypatch.setattr(call, "casts", lambda value, packed: True)
    monkeypatch.setattr(call, "_autocast", _casts_all)
    with torch.autocast("cpu", dtype=torch.bfloat16), fastlstm.backend("cpu"):
        out, _ = lstm(tokens)
        expected, _ = lstm.lstm(lstm._vectors(tokens))
    out, expected = (v.data if packed else v for v in (out, expected))
    assert out.dtype == expected.dtype == torch.float16
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in lstm.parameters())


def _casts_all(x, hx, weights):
    return x.half() if x.is_floating_point() else x, (hx[0].half(), hx[1].half()), [w.half() for w in weights]


@pytest.mark.parametrize("backend", ["torch", "cpu", None])
def test_packed_ids_under_autocast_on_a_cpu_give_float32(backend: str | None) -> None:
    """As packed vectors do in nn.LSTM."""
    lstm, ids = fastlstm.TokenLSTM(7, None, 5), torch.randint(7, (4, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16), fastlstm.backend(backend):
        assert _types(lstm, pack_sequence([ids[:, 0], ids[:2, 1]])) == [torch.float32] * 3


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}, {"recompute": True}])
def test_backward_inside_autocast_changes_no_gradient_of_a_call_outside(
    options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients have the type and the bits that they have without autocast; products are torch's, as on a GPU."""
    monkeypatch.setattr(gemm, "takes", lambda a: False)
    lstm, x = fastlstm.LSTM(3, 5, 2, **options), torch.randn(4, 2, 3, requires_grad=True)
    inputs, grads = [x, *lstm.parameters()], []
    for on in (False, True):
        with fastlstm.backend("reference"):
            out = lstm(x)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            grads.append(torch.autograd.grad(out, inputs, torch.ones_like(out)))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("lstm_class", [torch.nn.LSTM, fastlstm.LSTM])
def test_a_state_of_three_tensors_is_refused_under_autocast(lstm_class: type[torch.nn.LSTM]) -> None:
    lstm, x, h = lstm_class(3, 5), torch.randn(4, 2, 3), torch.zeros(1, 2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="two hidden states"):
        lstm(x, (h, h, h))
