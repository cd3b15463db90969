"""Plans leave out the kernels that a verification found wrong on a GPU model, type by type."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastlstm.backends import device, load
from fastlstm.backends.cuda.planner import KERNELS
from fastlstm.backends.triton import backend as triton
from fastlstm.backends.triton import planner
from fastlstm.doctor import small_call
from fastlstm.verify import record

CUDA, TRITON = load("cuda"), load("triton")
GPU = "NVIDIA H100 80GB HBM3"
HALF, SINGLE = torch.bfloat16, torch.float32


def call(dtype: torch.dtype = HALF, H: int = 128, B: int = 16):
    return replace(small_call(torch.device("cuda:0")), dtype=dtype, H=H, P=H, I=H, B=B)


def record_wrong(backend: str, *kernels: str, maths: tuple[str, ...] = ("bfloat16",)) -> None:
    failed = {backend: {kernel: {math: ["a case: error 1, allowed 0.1"] for math in maths} for kernel in kernels}}
    record.write(GPU, {"passed": {}, "failed": failed, "timings": []})


def test_the_next_kernel_is_planned_instead_of_a_wrong_one(lib):
    """One after the other, whichever the planner prefers."""
    blocked: list[str] = []
    while len(blocked) < len(KERNELS) - 1:
        planned = set(CUDA.kernels(call()))
        assert planned.isdisjoint(blocked)
        blocked.append(planned.pop())
        record_wrong("cuda", *blocked)
    assert CUDA.kernels(call()) == (next(k for k in KERNELS if k not in blocked),) * 2
    assert CUDA.describe(call()).startswith(f"cuda: {CUDA.kernels(call())[0]}: ")


def test_a_kernel_that_is_wrong_in_one_type_is_planned_in_the_others(lib):
    before = CUDA.kernels(call(torch.float16))
    record_wrong("cuda", *CUDA.kernels(call()))
    assert CUDA.kernels(call(torch.float16)) == before


def test_a_wrong_kernel_that_is_not_planned_changes_nothing(lib):
    before = CUDA.describe(call())
    record_wrong("cuda", *(set(CUDA.kernel_names) - set(CUDA.kernels(call()))))
    assert CUDA.describe(call()) == before


def test_with_all_kernels_wrong_the_backend_gives_the_reasons(lib):
    record_wrong("cuda", *CUDA.kernel_names)
    reason = CUDA.unsupported_reason(call())
    assert "no kernel is left that can run this call" in reason
    assert reason.count("`fastlstm doctor --verify` found it wrong in bfloat16 on this GPU model") == len(
        CUDA.kernel_names
    )
    assert CUDA.unsupported_reason(call(SINGLE)) is None


def test_a_recorded_kernel_is_planned_where_it_is_forced_by_name(lib):
    """Verification itself does that, and whoever looks for the fault."""
    record_wrong("cuda", *CUDA.kernel_names)
    for kernel in CUDA.kernel_names:
        with CUDA.force(kernel):
            assert CUDA.kernels(call()) == (kernel.removesuffix("_layers"),) * 2  # one layer runs as `lean`


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_a_type_of_its_own(lib, monkeypatch, allowed):
    monkeypatch.setattr(device, "allows_tf32", lambda: allowed)
    first = CUDA.kernels(call(SINGLE))[0]
    record_wrong("cuda", first, maths=("tf32",))
    assert (first in CUDA.kernels(call(SINGLE))) is not allowed


def test_triton_plans_another_shape_instead_of_a_wrong_one(fresh, monkeypatch):
    monkeypatch.setattr(triton, "gpu", lambda device: planner.GpuLimits(GPU, 90, 132, 227 << 10))
    monkeypatch.setattr(triton, "_wrong_device", lambda device: None)
    assert TRITON.kernels(call()) == ("single_block",)
    record_wrong("triton", "single_block")
    assert TRITON.kernels(call()) == ("streamed",)
    assert TRITON.kernels(call(torch.float16)) == ("single_block",)
    record_wrong("triton", *TRITON.kernel_names)
    assert "no kernel is left" in TRITON.unsupported_reason(call())
    assert "per_step: `fastlstm doctor --verify` found it wrong" in TRITON.unsupported_reason(call())
    with TRITON.force("single_block"):
        assert TRITON.kernels(call()) == ("single_block",)
