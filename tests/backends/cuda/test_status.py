"""What kernels leave for the host: raised at the next call or by `fastlstm.check`, and what follows for plans."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

import fastlstm
from fastlstm.backends import blocklist, device, load
from fastlstm.backends.base import BackendError
from fastlstm.backends.cuda import status as cuda_status
from fastlstm.doctor import small_call

CUDA = load("cuda")
LARGE = replace(small_call(torch.device("cuda:0")), dtype=torch.bfloat16, H=768, P=768, B=16)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="fastlstm")
    return caplog


def test_each_device_kernel_and_type_has_a_word_of_its_own(fresh):
    words = {cuda_status.word(i, k, m).data_ptr() for i in (0, 1) for k in CUDA.kernel_names for m in device.MATHS}
    assert len(words) == 2 * len(CUDA.kernel_names) * len(device.MATHS)
    cuda_status.word(1, "single_block", "float16")[0] = 7
    assert cuda_status.words(1).sum() == 7
    assert cuda_status.words(0).sum() == 0


def test_words_that_inference_mode_asked_for_first_can_be_cleared_outside_it(lib):
    with torch.inference_mode():
        cuda_status.word(0, "single_block", "float16")[0] = cuda_status.BAD_ID
    with pytest.raises(IndexError, match="single_block in float16"):
        cuda_status.raise_on(0)
    cuda_status.raise_on(0)


def test_a_kernel_whose_blocks_waited_is_told_once_and_not_planned_again(lib, warnings):
    """By kernel, type and device: after `lean` comes `cooperative`, after that what waits for no other block."""
    for number, (kernel, then) in enumerate((("lean", "cooperative"), ("cooperative", "per_step")), 1):
        assert CUDA.kernels(LARGE) == (kernel, kernel)
        cuda_status.word(0, kernel, "bfloat16")[0] = cuda_status.TIMED_OUT
        with pytest.raises(
            BackendError, match=f"on cuda:0 gave up: the blocks of kernel {kernel} in bfloat16 waited 1.5 s"
        ) as raised:
            cuda_status.raise_on(0)
        assert (raised.value.kernel, raised.value.math) == (kernel, "bfloat16")
        cuda_status.raise_on(0)
        assert CUDA.kernels(LARGE) == (then, then)
        assert CUDA.kernels(replace(LARGE, dtype=torch.float16)) == ("lean", "lean")
        assert CUDA.kernels(replace(LARGE, device=torch.device("cuda:1"))) == ("lean", "lean")
        cuda_status.word(0, kernel, "bfloat16")[0] = cuda_status.TIMED_OUT
        with pytest.raises(BackendError):
            cuda_status.raise_on(0)
        assert len(warnings.records) == number
        assert f"{kernel} (bfloat16) is not used again on cuda:0" in warnings.text


def test_where_no_type_is_known_the_error_names_no_kernel():
    error = cuda_status.error(cuda_status.TIMED_OUT, "the simulated GPU", "of it", 1500)
    assert (error.kernel, error.math) == ("", "")
    assert "the blocks of kernel of it waited 1.5 s" in str(error)


@pytest.mark.parametrize("kernel", ["cooperative", "lean"])
def test_a_kernel_that_gave_up_does_not_run_by_its_name_either(lib, kernel):
    blocklist.block("cuda", 0, kernel, ("bfloat16",), "its blocks waited 2 s for each other")
    with CUDA.force(kernel):
        assert "its blocks waited 2 s for each other" in CUDA.unsupported_reason(LARGE)
    assert CUDA.unsupported_reason(LARGE) is None


def test_where_nothing_is_left_the_reasons_are_told(lib):
    for kernel in CUDA.kernel_names:
        blocklist.block("cuda", 0, kernel, ("bfloat16",), f"{kernel} is broken")
    reason = CUDA.unsupported_reason(LARGE)
    assert "no kernel is left" in reason
    assert "single_block: single_block is broken" in reason


def test_check_waits_and_raises(lib, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    fastlstm.check()
    assert waited == []  # nothing was launched
    cuda_status.word(0, "per_step", "float32")
    cuda_status.word(2, "single_block", "float16")[0] = cuda_status.BAD_ID
    fastlstm.check("cuda:0")
    fastlstm.check(torch.device("cpu"))
    fastlstm.check(1)
    assert waited == [0]
    with pytest.raises(IndexError, match=r"cuda:2 had ids outside its table \(kernel single_block in float16\)"):
        fastlstm.check()
    assert waited == [0, 0, 2]
    fastlstm.check()


def test_check_tells_why_where_the_device_failed(lib, monkeypatch):
    def synchronize(index):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    cuda_status.word(0, "per_step", "float32")
    with pytest.raises(RuntimeError, match="launch failure"):
        fastlstm.check()
    cuda_status.word(0, "per_step", "float32")[0] = cuda_status.BAD_ID
    with pytest.raises(IndexError) as raised:
        fastlstm.check()
    assert "launch failure" in str(raised.value.__context__)


def test_check_raises_inside_a_capture(lib, monkeypatch):
    cuda_status.word(0, "per_step", "float32")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="a capture cannot; call it after a replay"):
        fastlstm.check()


def test_forward_and_backward_write_the_word_of_their_kernel_and_type(simulated, monkeypatch):
    asked, word = [], cuda_status.word
    monkeypatch.setattr(cuda_status, "word", lambda *of: asked.append(of) or word(*of))
    lstm = fastlstm.LSTM(4, 8, dtype=torch.bfloat16)
    for kernel in ("single_block", "per_step"):
        with fastlstm.backend("cuda"), CUDA.force(kernel):
            out = lstm(torch.zeros(2, 1, 4, dtype=torch.bfloat16))[0]
        out.sum().backward()  # by the kernel that was forced for forward
    assert asked == [(3, kernel, "bfloat16") for kernel in ("single_block", "per_step") for _ in range(2)]
    fastlstm.check()
    assert simulated[-1] == ("waited", 3)


@pytest.mark.parametrize("kernel", ["per_step", "single_block"])
def test_an_id_outside_is_nan_and_an_error_later(simulated, monkeypatch, kernel):
    """Ids on a GPU are not looked at by the host; here on CPU tensors, past that look."""
    monkeypatch.setattr("fastlstm.ops.validation.ids_in_range", lambda ids, V: None)
    lstm = fastlstm.TokenLSTM(4, None, 8)
    with fastlstm.backend("cuda"), CUDA.force(kernel), torch.no_grad():
        out = lstm(torch.tensor([[1], [9]]))[0]
        assert out[0].isfinite().all()
        assert out[1].isnan().all()
        with pytest.raises(IndexError, match=f"cuda:3 had ids outside its table .kernel {kernel} in float32"):
            fastlstm.check()
        assert lstm(torch.tensor([[1], [3]]))[0].isfinite().all()


def test_ids_on_another_device_are_not_looked_at():
    """No operation at all, since the host would wait for it or an assertion end the device's context."""
    from fastlstm.ops import validation

    class Ids:
        device = torch.device("cuda")

        def numel(self) -> int:
            return 1

    validation.ids_in_range(Ids(), 4)
    with pytest.raises(IndexError, match="ids hold 4"):
        validation.ids_in_range(torch.tensor([4]), 4)
