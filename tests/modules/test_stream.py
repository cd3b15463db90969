"""`lstm.stream`: the steps of a sequence one by one, against the module on all of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import fastlstm
from fastlstm.backends import native
from fastlstm.modules import stream
from fastlstm.testing import accuracy
from tests import isas

needs_native = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
SIZES = [(1, 1, 1, 1, 0), (3, 7, 2, 2, 0), (7, 65, 2, 3, 0), (5, 129, 1, 4, 33), (16, 16, 3, 7, 0), (2, 33, 2, 13, 17)]


def _pair(I: int, H: int, L: int, P: int, **options) -> tuple[nn.LSTM, fastlstm.LSTM]:
    torch_lstm = nn.LSTM(I, H, L, proj_size=P, **options)
    return torch_lstm, fastlstm.LSTM.from_torch(torch_lstm)


def _exact(lstm: nn.LSTM, x: Tensor, store: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Output and states in float64, the weights rounded to `store` first."""
    exact = copy.deepcopy(lstm).double()
    with torch.no_grad():
        for name, w in exact.named_parameters():
            if name.startswith("weight"):
                w.copy_(w.to(store).double())
        out, (h, c) = exact(x.double())
    return out, h, c


def _steps(flow: stream.Stream, x: Tensor) -> Tensor:
    return torch.stack([flow.step(row) for row in x])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("store", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("I", "H", "L", "B", "P"), SIZES)
def test_steps_are_the_sequence(I: int, H: int, L: int, B: int, P: int, store: torch.dtype, threads: int) -> None:
    """Against float64 on the stored weights: storing is the only thing bfloat16 changes."""
    torch_lstm, lstm = _pair(I, H, L, P)
    x, before = torch.randn(6, B, I), torch.get_num_threads()
    flow = lstm.stream(B, store)
    torch.set_num_threads(threads)
    try:
        out, (h, c) = _steps(flow, x), flow.state
    finally:
        torch.set_num_threads(before)
    rounded = copy.deepcopy(torch_lstm)
    with torch.no_grad():
        for name, w in rounded.named_parameters():
            if name.startswith("weight"):
                w.copy_(w.to(store))
        torch_out, (torch_h, torch_c) = rounded(x)
    for name, actual, exact, torch_result in zip(
        ("out", "h", "c"), (out, h, c), _exact(torch_lstm, x, store), (torch_out, torch_h, torch_c), strict=True
    ):
        accuracy.check(name, actual, exact, torch_result)


@needs_native
@pytest.mark.parametrize("isa", isas.FLOAT)
def test_every_instruction_set_gives_the_sequence(isa: str) -> None:
    with isas.use(isa):
        for sizes in SIZES:
            test_steps_are_the_sequence(*sizes, torch.bfloat16, 2)


def test_large_layers_on_several_threads_are_the_sequence() -> None:
    torch_lstm, lstm = _pair(300, 257, 2, 0)
    x = torch.randn(3, 5, 300)
    out = _steps(lstm.stream(5), x)
    accuracy.check("out", out, _exact(torch_lstm, x)[0], torch_lstm(x)[0])
    assert torch.equal(out, _steps(lstm.stream(5), x))


@pytest.mark.parametrize(("I", "H", "L", "B", "P"), SIZES)
def test_steps_without_the_native_module_are_the_sequence(
    I: int, H: int, L: int, B: int, P: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "unavailable", lambda: "not built")
    test_steps_are_the_sequence(I, H, L, B, P, torch.bfloat16, 1)


@pytest.mark.parametrize("H", [8, 64, 256])
def test_bfloat16_weights_cost_a_stated_error(H: int) -> None:
    """Weights off by up to 2^-8 of themselves; h of freshly drawn layers then by less than 2^-7 of its size."""
    torch_lstm, lstm = _pair(H, H, 2, 0)
    x = torch.randn(50, 3, H)
    with torch.no_grad():
        w = torch_lstm.weight_hh_l0
        assert ((w.bfloat16().float() - w).abs() <= w.abs() * 2**-8).all()
        exact = _steps(lstm.stream(3, torch.float32), x)
        error = accuracy.error(_steps(lstm.stream(3, torch.bfloat16), x), exact)
    assert 2**-16 < error < 2**-7, error


def test_a_stream_copies_the_weights() -> None:
    _, lstm = _pair(3, 5, 1, 2)
    flow, x = lstm.stream(2), torch.randn(2, 3)
    first = flow.step(x)
    with torch.no_grad():
        for w in lstm.parameters():
            w.mul_(3)
    flow.reset()
    assert torch.equal(flow.step(x), first)
    assert not torch.equal(lstm.stream(2).step(x), first)


def test_the_state_can_be_set_and_read() -> None:
    torch_lstm, lstm = _pair(3, 5, 2, 2)
    x, hx = torch.randn(4, 2, 3), (torch.randn(2, 2, 2), torch.randn(2, 2, 5))
    flow = lstm.stream(2)
    flow.state = hx
    assert all(torch.equal(a, b) for a, b in zip(flow.state, hx, strict=True))
    out, state = torch_lstm(x, hx)
    torch.testing.assert_close(_steps(flow, x), out.detach())
    kept = flow.state
    torch.testing.assert_close(kept, tuple(v.detach() for v in state))
    flow.step(x[0])
    torch.testing.assert_close(kept, tuple(v.detach() for v in state))  # a copy
    with pytest.raises(ValueError, match=r"c has shape \[2, 2, 2\], expected \[2, 2, 5\]"):
        flow.state = (hx[0], hx[0])


def test_reset_zeroes_the_state_of_all_rows_or_of_some() -> None:
    _, lstm = _pair(3, 5, 2, 0)
    flow, x = lstm.stream(3), torch.randn(3, 3)
    first = flow.step(x)
    second = flow.step(x)
    flow.reset(torch.tensor([True, False, True]))
    third = flow.step(x)
    torch.testing.assert_close(third[[0, 2]], first[[0, 2]])
    assert not torch.allclose(third[1], second[1])
    flow.reset()
    assert torch.equal(flow.step(x), first)
    for rows in (torch.ones(3), torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool, device="meta")):
        with pytest.raises(ValueError, match=r"rows is .* with shape .*, expected bool with shape \[3\] on cpu"):
            flow.reset(rows)


def test_the_output_has_the_type_of_the_input() -> None:
    half = fastlstm.LSTM(3, 5, dtype=torch.bfloat16)
    flow = half.stream(2)
    assert flow.dtype == torch.bfloat16
    x = torch.randn(2, 3)
    assert flow.step(x).dtype == torch.float32
    assert flow.step(x.bfloat16()).dtype == torch.bfloat16
    assert fastlstm.LSTM(3, 5).double().stream(1, torch.float32).step(torch.randn(1, 3).double()).dtype == torch.float64


def test_a_stream_has_no_dropout_and_no_gradient() -> None:
    torch_lstm, lstm = _pair(4, 5, 2, 0, bias=False, dropout=0.9)
    assert lstm.training
    x = torch.randn(4, 7, 2).transpose(0, 1).transpose(1, 2)  # (7, 2, 4), not contiguous
    out = _steps(lstm.stream(2), x.requires_grad_())
    assert not out.requires_grad
    torch.testing.assert_close(out, torch_lstm.eval()(x)[0].detach())


def test_bad_arguments_and_copies_are_refused() -> None:
    with pytest.raises(ValueError, match="bidirectional LSTM cannot be streamed"):
        fastlstm.LSTM(3, 5, bidirectional=True).stream(1)
    for bad in (0, -1, True, 1.0):
        with pytest.raises(ValueError, match=r"batch_size is .*, expected a positive int"):
            fastlstm.LSTM(3, 5).stream(bad)
    with pytest.raises(ValueError, match=r"dtype is torch.float64, expected torch.float32 or torch.bfloat16"):
        fastlstm.LSTM(3, 5).double().stream(1)
    flow = fastlstm.LSTM(3, 5).stream(2)
    for bad in (torch.zeros(2, 4), torch.zeros(1, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"x is .*, expected a floating tensor of shape \[2, 3\] on cpu"):
            flow.step(bad)
    for copier in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copier(flow)


def test_sizes_of_a_stream_cannot_be_changed() -> None:
    """They are what the kernel trusts."""
    stream = fastlstm.LSTM(3, 5).stream(2)
    for name in ("batch_size", "dtype", "device"):
        with pytest.raises(AttributeError):
            setattr(stream, name, 1)
    assert (stream.batch_size, stream.dtype, stream.device.type) == (2, torch.float32, "cpu")


def test_a_stream_made_in_inference_mode_can_be_set_and_reset_outside() -> None:
    with torch.inference_mode():
        stream = fastlstm.LSTM(3, 5).stream(2)
        stream.step(torch.randn(2, 3))
    stream.reset(torch.tensor([True, False]))
    stream.state = torch.ones(1, 2, 5), torch.ones(1, 2, 5)
    stream.reset()
    assert all(v.eq(0).all() for v in stream.state)


def test_weights_of_another_shape_are_refused() -> None:
    lstm = fastlstm.LSTM(3, 5)
    lstm.weight_ih_l0 = torch.nn.Parameter(torch.randn(20, 2))
    with pytest.raises(RuntimeError, match=r"weight_ih_l0 has shape \[20, 2\], expected \[20, 3\]"):
        lstm.stream(1)


def test_an_input_without_plain_memory_is_right_or_refused() -> None:
    """A negated view has its sign; wrapper classes, fake tensors and freed storages are an error."""
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(2, 3)
    expected = lstm.stream(2).step(x)
    assert torch.equal(lstm.stream(2).step(torch._neg_view(-x)), expected)
    assert torch.equal(lstm.stream(2).step(x.as_subclass(type("Own", (torch.Tensor,), {}))), expected)
    freed, freed_bfloat16 = x.clone(), x.bfloat16()
    for v in (freed, freed_bfloat16):
        v.untyped_storage().resize_(0)
    wrapped = TwoTensor(x, x)
    for bad in (freed, freed_bfloat16, wrapped, torch._to_functional_tensor(x)):
        with pytest.raises(RuntimeError, match=r"x is (float32|bfloat16)"):
            lstm.stream(2).step(bad)
