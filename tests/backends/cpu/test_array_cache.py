"""Arrays that wait for the next training step (csrc/bindings/array_cache.cpp).

The Function that uses them: tests/modules/test_fused_route.py.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

import fastlstm
from fastlstm.backends import native
from fastlstm.backends.cpu import function

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
PAGE = 2 << 20


def _array(shape: tuple[int, ...], double: bool = False) -> Tensor:
    return torch.utils.dlpack.from_dlpack(native.load().array(shape, double))


@pytest.mark.parametrize("double", [False, True])
def test_a_freed_array_is_used_again(double: bool) -> None:
    shape = (3, 7, 129)
    first = _array(shape, double)
    assert first.shape == shape
    assert first.is_contiguous()
    assert first.dtype == (torch.float64 if double else torch.float32)
    first.fill_(1)
    place, before = first.data_ptr(), native.load().cached_bytes()
    del first
    size = 3 * 7 * 129 * (8 if double else 4)
    assert before + size <= native.load().cached_bytes() <= before + size * 9 / 8 + 4096
    assert _array(shape, double).data_ptr() == place


def test_an_array_in_use_is_not_given_out() -> None:
    held = [_array((5,)) for _ in range(4)]
    assert len({v.data_ptr() for v in held}) == 4
    view = held[0][1:]
    place = held[0].data_ptr()
    del held[0]
    assert _array((5,)).data_ptr() != place  # the view still reads it
    assert view.shape == (4,)


def test_a_freed_array_serves_one_of_nearly_its_size() -> None:
    """As in batches of ragged sequences."""
    first = _array((10_001, 129))
    place = first.data_ptr()
    del first
    assert _array((10_100, 129)).data_ptr() == place


def test_a_capsule_that_nobody_takes_gives_its_array_back() -> None:
    before = native.load().cached_bytes()
    capsule = native.load().array((PAGE,), False)
    del capsule
    assert native.load().cached_bytes() in (before, before + 4 * PAGE)
    assert _array((PAGE,)).numel() == PAGE


def test_arrays_that_nobody_asks_for_go_back_to_the_system() -> None:
    del_me = [_array((9 * PAGE,)) for _ in range(2)]
    del_me.clear()
    most = native.load().cached_bytes()
    for _ in range(300):
        _array((1,))
    assert native.load().cached_bytes() <= most - 2 * 4 * 9 * PAGE + PAGE


def test_an_array_may_be_freed_by_another_thread() -> None:
    box = [_array((11, 3))]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert _array((11, 3)).shape == (11, 3)


def test_training_steps_on_used_arrays_have_nn_lstms_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps over arrays that hold what the step before left there."""
    monkeypatch.setattr(function, "_LARGE", 16)
    lstm, torch_lstm = fastlstm.LSTM(3, 5, 2), torch.nn.LSTM(3, 5, 2)
    torch_lstm.load_state_dict(lstm.state_dict())
    for T, B in ((7, 3), (7, 3), (1, 2), (7, 3)):
        x = torch.randn(T, B, 3)
        for module in (lstm, torch_lstm):
            module.zero_grad()
            module(x)[0].square().sum().backward()
        for parameter, torch_parameter in zip(lstm.parameters(), torch_lstm.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, torch_parameter.grad, rtol=1e-4, atol=1e-5)
