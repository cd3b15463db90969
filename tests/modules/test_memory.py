"""Tensors whose memory is not what it seems: storages freed or made shorter, orders of other sequences, infinite inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastlstm
from fastlstm.backends import native
from fastlstm.ops.arguments import OpInputs

TYPES = [torch.float32, torch.float64, torch.bfloat16]


def _freed(v: torch.Tensor) -> torch.Tensor:
    v = v.clone()
    v.untyped_storage().resize_(v.untyped_storage().nbytes() - v.element_size())
    return v


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("which", ["input", "h0", "c0", "weight_hh_l0", "spaced input", "negated input"])
def test_a_storage_that_was_made_shorter_is_an_error(which: str, train: bool, dtype: torch.dtype) -> None:
    """nn.LSTM reads what is not its own, or ends the process."""
    for T in (1, 5):
        lstm, x = fastlstm.LSTM(3, 5, dtype=dtype), torch.randn(T, 2, 3, dtype=dtype)
        hx = [torch.randn(1, 2, 5, dtype=dtype) for _ in range(2)]
        if which == "input":
            x = _freed(x)
        elif which == "spaced input":
            x = torch.randn(T, 2, 6, dtype=dtype)[..., ::2]
            x.untyped_storage().resize_(8)
        elif which == "negated input":
            x = torch._neg_view(x)
            x.untyped_storage().resize_(8)
        elif which in ("h0", "c0"):
            hx[which == "c0"] = _freed(hx[0])
        else:
            lstm.weight_hh_l0.untyped_storage().resize_(8)
        with torch.set_grad_enabled(train), pytest.raises(RuntimeError, match=r"storage has|was it changed"):
            lstm(x, tuple(hx))


@pytest.mark.parametrize("field", ["data", "batch_sizes", "sorted_indices"])
def test_freed_parts_of_a_packed_sequence_are_an_error(field: str) -> None:
    packed = pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    packed = packed._replace(**{field: _freed(getattr(packed, field))})
    with pytest.raises(RuntimeError, match=f"{field} is .*, and its storage has"):
        fastlstm.LSTM(3, 5)(packed, (torch.randn(1, 2, 5), torch.randn(1, 2, 5)))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shape", [(1, 2, 4), (1, 3, 5), (0, 2, 5), (2, 5)], ids=str)
def test_a_packed_state_of_another_size_is_an_error(shape: tuple, which: int) -> None:
    """nn.LSTM does not look at it, and reads behind one that is too small."""
    packed = pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    hx = [torch.randn(1, 2, 5), torch.randn(1, 2, 5)]
    hx[which] = torch.randn(shape)
    for observed in (nullcontext(), torch.device("cpu")):
        with observed, pytest.raises((RuntimeError, IndexError)):
            fastlstm.LSTM(3, 5)(packed, tuple(hx))


@pytest.mark.parametrize("first", [2**40, -1])
def test_more_sequences_than_rows_take_no_memory(first: int) -> None:
    packed = PackedSequence(torch.randn(7, 3), torch.tensor([first, 3]))
    for observed in (nullcontext(), torch.device("cpu")):
        with observed, pytest.raises(RuntimeError, match=f"batch_sizes begins with {first}, expected a number of"):
            fastlstm.LSTM(3, 5)(packed)


@pytest.mark.parametrize("order", [[0], [0, 1, 1], [[0, 1]], []], ids=str)
def test_an_order_of_other_sequences_is_an_error(order: list) -> None:
    packed = pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    packed = PackedSequence(
        packed.data, packed.batch_sizes, torch.tensor(order, dtype=torch.int64), packed.unsorted_indices
    )
    state = torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    with pytest.raises(RuntimeError, match=r"sorted_indices has shape .*, expected \[2\]"):
        fastlstm.LSTM(3, 5)(packed, state)


@pytest.mark.parametrize("field", ["sorted_indices", "unsorted_indices"])
@pytest.mark.parametrize("given", [False, True])
def test_an_order_on_another_device_is_an_error(field: str, given: bool) -> None:
    """torch takes one on meta and returns states that nobody wrote."""
    packed = pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    packed = packed._replace(**{field: getattr(packed, field).to("meta")})
    state = (torch.randn(1, 2, 5), torch.randn(1, 2, 5)) if given else None
    with pytest.raises(RuntimeError, match=rf"^{field} is on meta, expected cpu as the packed rows$"):
        fastlstm.LSTM(3, 5)(packed, state)


@pytest.mark.parametrize("which", ["x", "w_hh", "h0", "bias"])
def test_an_op_with_one_argument_on_meta_is_an_error(which: str) -> None:
    """torch would ask for shapes alone, and return memory that nobody wrote."""
    sizes = {"x": (4, 2, 3), "w_x": (20, 3), "bias": (20,), "w_hh": (20, 5), "h0": (2, 5), "c0": (2, 5)}
    tensors = {name: torch.randn(shape, device="meta" if name == which else "cpu") for name, shape in sizes.items()}
    nothing = dict.fromkeys(("ids", "w_hr", "batch_sizes", "offsets", "reset"))
    inputs = OpInputs(**tensors, **nothing, reverse=False, save=2)
    with pytest.raises(RuntimeError, match=r"lstm_forward: a tensor with shape .* is on .*, expected "):
        torch.ops.fastlstm.lstm_forward(*inputs)
    with pytest.raises(RuntimeError, match=r"sum_by_id: a tensor with shape \[3\] is on meta, expected cpu"):
        torch.ops.fastlstm.sum_by_id(torch.randn(3, 2), torch.zeros(3, dtype=torch.int64, device="meta"), 4)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 3e38, -3e38, 1e38], ids=str)
@pytest.mark.parametrize("T", [1, 5])
def test_gradients_of_infinite_and_huge_inputs_are_those_of_nn_lstm(value: float, T: int) -> None:
    """The sigmoid is 0 at minus infinity, and 0 times infinity is no number."""
    grads = []
    for cls in (torch.nn.LSTM, fastlstm.LSTM):
        torch.manual_seed(0)
        lstm, x = cls(3, 5), torch.randn(T, 2, 3)
        x[0, 1, 2] = value
        lstm(x)[0].sum().backward()
        grads.append([p.grad for p in lstm.parameters()])
    torch.testing.assert_close(grads[1], grads[0], equal_nan=True)


def test_empty_cache_gives_everything_back() -> None:
    if native.unavailable() is not None:
        pytest.skip(str(native.unavailable()))
    lstm, x = fastlstm.LSTM(32, 128), torch.randn(40, 32, 32)
    lstm(x)[0].sum().backward()
    assert native.load().cached_bytes() > 1 << 20
    fastlstm.empty_cache()
    assert native.load().cached_bytes() == 0
    lstm(x)[0].sum().backward()


@pytest.mark.parametrize(("value", "kept"), [("0", 0), ("9" * 30, 360 << 20), ("7.5", 240 << 20)])
def test_the_environment_limits_the_cache(value: str, kept: int) -> None:
    """A value that is no number is said, and not used."""
    if native.unavailable() is not None:
        pytest.skip(str(native.unavailable()))
    code = (
        "import torch; from fastlstm.backends import native\n"
        "arrays = [torch.utils.dlpack.from_dlpack(native.load().array((10 << 20,), False)) for _ in range(9)]\n"
        "arrays.clear(); print(native.load().cached_bytes())"
    )
    environment = os.environ | {"FASTLSTM_CACHE_MB": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert int(done.stdout) == kept
    assert ("FASTLSTM_CACHE_MB is '7.5', expected a whole number" in done.stderr) == (value == "7.5")


def test_the_cache_has_a_limit() -> None:
    if native.unavailable() is not None:
        pytest.skip(str(native.unavailable()))
    fastlstm.empty_cache()
    arrays = [torch.utils.dlpack.from_dlpack(native.load().array((10 << 20,), False)) for _ in range(9)]
    arrays.clear()
    assert 200 << 20 < native.load().cached_bytes() <= 256 << 20
    fastlstm.empty_cache()
