"""The cuda backend without a GPU: its reasons, its device handling, and whole calls whose launches the simulation takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import fastlstm
from fastlstm.backends import device, load, native
from fastlstm.backends.cuda import backend as cuda
from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.doctor import cuda_kernels, small_call
from fastlstm.testing import accuracy
from fastlstm.testing.cases import SHORT
from fastlstm.verify import correctness

CUDA = load("cuda")
GPU = replace(small_call(torch.device("cpu")), device=torch.device("cuda:0"))


def test_without_kernels_it_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: SimpleNamespace(no_cuda="no nvcc was found when it was built"))
    reason = CUDA.unsupported_reason(GPU)
    assert "no CUDA kernels, since no nvcc was found when it was built" in reason
    assert "fastlstm[cuda-build]" in reason
    assert cuda_kernels() == "none, since no nvcc was found when it was built"


def test_doctor_names_the_architectures_of_built_kernels(lib):
    assert cuda_kernels() == "for sm_75, sm_80, sm_90, and what is newer"


def test_without_a_driver_it_says_so_wherever_the_tensors_are(lib):
    lib.reason = "there is no NVIDIA driver; install one"
    assert CUDA.unsupported_reason(GPU) == CUDA.unsupported_reason(small_call(torch.device("cpu"))) == lib.reason


def test_other_devices_and_types_are_refused(lib):
    assert "tensors are on cpu" in CUDA.unsupported_reason(small_call(torch.device("cpu")))
    assert "dtype is torch.float64" in CUDA.unsupported_reason(replace(GPU, dtype=torch.float64))


def test_rocm_is_refused(lib, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "AMD" in CUDA.unsupported_reason(GPU)


@pytest.mark.parametrize(
    ("capability", "runs"), [(70, False), (75, True), (80, True), (86, True), (89, True), (90, True), (100, True)]
)
def test_machine_code_runs_on_its_major_version_and_ptx_on_newer_ones(lib, capability, runs):
    lib.capability = capability
    reason = CUDA.unsupported_reason(GPU)
    assert (reason is None) == runs, reason
    if not runs:
        assert f"FASTLSTM_CUDA_ARCHS={capability}" in reason


def test_ptx_runs_on_nothing_older(lib):
    lib.archs, lib.capability = "75,120", 90
    assert "compute capability 9.0 and the kernels were built for 7.5, 12.0" in CUDA.unsupported_reason(GPU)


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("90a", 90, True),
        ("90a", 100, False),  # no PTX to go by
        ("90a", 89, False),
        ("80,90a", 89, True),
        ("80,90a", 100, True),  # by the PTX of 8.0
        ("90,90a", 90, True),
        ("90,90a", 100, True),
        ("90a,100a", 103, False),
        ("90a,100a", 100, True),
    ],
)
def test_code_with_a_letter_runs_on_its_own_gpu_alone(lib, archs, capability, runs):
    lib.archs, lib.capability = archs, capability
    reason = CUDA.unsupported_reason(GPU)
    assert (reason is None) == runs, reason
    if not runs:
        assert "the kernels were built for 9.0 alone" in reason
        assert f"FASTLSTM_CUDA_ARCHS={capability}" in reason


def test_plan_names_kernel_size_time_and_bound(lib):
    line = CUDA.describe(replace(GPU, dtype=torch.bfloat16, H=768, P=768, B=16))
    for words in (
        "cuda: lean: ",
        "blocks of",
        "registers",
        "KiB",
        "µs a step predicted on NVIDIA H100",
        "bound by",
    ):
        assert words in line


def test_a_forced_kernel_that_cannot_run_says_why(lib):
    with CUDA.force("single_block"):
        assert "do not fit one block" in CUDA.unsupported_reason(replace(GPU, H=1024, P=1024))
    with CUDA.force("per_step"):
        assert CUDA.describe(GPU).startswith("cuda: per_step: ")
    with (
        pytest.raises(ValueError, match="kernel is 'tiles', expected one of per_step, single_block, cooperative, lean"),
        CUDA.force("tiles"),
    ):
        pass


@pytest.mark.parametrize("none", ["", None])
def test_an_empty_name_lets_the_planner_choose(lib, none):
    """So is a plan of two kernels timed by `doctor --verify`."""
    planned = CUDA.kernels(GPU)
    assert planned[0] != "per_step"
    with CUDA.force("per_step"):
        assert CUDA.kernels(GPU)[0] == "per_step"
        with CUDA.force(none):
            assert CUDA.kernels(GPU) == planned
        assert CUDA.kernels(GPU)[0] == "per_step"
    assert CUDA.kernels(GPU) == planned


def test_a_backend_of_one_kernel_takes_no_name():
    with (
        pytest.raises(ValueError, match="backend 'reference' has no choice of kernels"),
        load("reference").force("any"),
    ):
        pass


@pytest.mark.parametrize("backward_thread", [False, True])
@pytest.mark.parametrize("kernel", CUDA.kernel_names)
def test_backward_runs_the_kernel_that_was_forced_for_forward(simulated, monkeypatch, kernel, backward_thread):
    """Outside the `with` block, and in a thread like autograd's own, where nothing is forced."""
    ran, forward, backward = [], cuda_launch.forward, launch_backward.backward
    monkeypatch.setattr(
        cuda_launch, "forward", lambda gpu, plan, *args: ran.append(plan.forward.kernel) or forward(gpu, plan, *args)
    )
    monkeypatch.setattr(
        launch_backward,
        "backward",
        lambda gpu, plan, *args: ran.append(plan.backward.kernel) or backward(gpu, plan, *args),
    )
    lstm, x = fastlstm.LSTM(2, 32, dtype=torch.bfloat16), torch.randn(3, 2, 2, dtype=torch.bfloat16)
    with fastlstm.backend("cuda"), CUDA.force(kernel):
        loss = lstm(x)[0].sum()
    if backward_thread:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(loss.backward).result()
    else:
        loss.backward()
    assert ran == [kernel.removesuffix("_layers")] * 2  # a layer by itself runs as `lean` does


def test_an_error_of_a_launcher_is_named_as_a_cuda_error(lib, monkeypatch):
    """By these words programs, `doctor --verify` among them, know that the device has failed."""
    lib.per_step_forward = None
    for raised, text in (
        (RuntimeError("per_step_forward: an illegal memory access"), "CUDA error: per_step_forward: an illegal memory"),
        (RuntimeError("set_device: unknown error"), "CUDA error: set_device: unknown error"),
        (RuntimeError("mat1 and mat2: wrong shapes"), "mat1 and mat2: wrong shapes"),
        (GaveUpError("properties: of another type"), "properties: of another type"),
    ):
        with pytest.raises(type(raised)) as caught, cuda._named_as_cuda_errors():
            raise raised
        assert str(caught.value).startswith(text)
        assert correctness.is_fatal(caught.value) == (text.startswith("CUDA error") or type(raised) is GaveUpError)


@pytest.mark.parametrize("rows", [2**31 - 1, 2**31])
def test_a_call_of_2_31_rows_does_not_run_on_lean(lib, rows):
    """Lean counts rows in 32 bits, with a sign."""
    call = replace(GPU, dtype=torch.bfloat16, H=512, P=512, B=64, N=rows)
    assert ("lean" in CUDA.kernels(call)) == (rows < 2**31)
    with CUDA.force("lean"):
        reason = CUDA.unsupported_reason(call)
    assert (reason is None) == (rows < 2**31)
    if reason:
        assert "lean: it counts rows in 32 bits, and the call has 2147483648" in reason


def test_float32_follows_the_switch_of_tf32(lib, monkeypatch):
    for allowed in (True, False):
        monkeypatch.setattr(device, "allows_tf32", lambda allowed=allowed: allowed)
        assert cuda._choose(GPU).tf32 is allowed
    lib.capability = 75
    cuda._gpu.cache_clear()
    monkeypatch.setattr(device, "allows_tf32", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    assert cuda._choose(GPU).tf32 is False


def test_products_of_half_types_have_float32_results_where_torch_can():
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert device.multiplies_wide()
    with FakeTensorMode():
        a, b = (torch.empty(2, 2, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for out in (torch.empty(2, 2, device="cuda"), torch.empty_like(a)):
            cuda._Gpu.product(None, a, b, out)


@pytest.mark.parametrize("kernel", CUDA.kernel_names)
def test_a_packed_call_with_resets_by_the_rule_of_accuracy(simulated, kernel):
    """Forward and backward of a packed case with resets, by the rule of accuracy; the device is set for both runtimes."""
    H = 16 if kernel.startswith("lean") else 7
    cases = [c for c in SHORT if c.H == H and c.packed and c.reset and c.B and not c.projection]
    with CUDA.force(kernel if kernel != "cooperative" else None):
        accuracy.check_backend(CUDA, cases[0], torch.bfloat16)
    assert simulated == [("device", 3), ("runtime", 3)] * (len(simulated) // 2)
    assert len(simulated) >= 4


@pytest.mark.parametrize("allowed", [True, False])
def test_products_follow_cudnns_switch(simulated, monkeypatch, allowed):
    """As in nn.LSTM, whatever torch's own products do; inside a call only."""
    precisions, matmul = [], torch.backends.cuda.matmul
    monkeypatch.setattr(device, "allows_tf32", lambda: allowed)
    input_side = cuda_launch.input_side
    monkeypatch.setattr(
        cuda_launch, "input_side", lambda *a: (precisions.append(matmul.fp32_precision), input_side(*a))[1]
    )
    before = matmul.fp32_precision
    case = next(c for c in SHORT if c.H == 7 and not c.ids and not c.projection)
    accuracy.check_backend(CUDA, case, torch.float32, tf32=allowed)
    assert set(precisions) == {"tf32" if allowed else "ieee"}
    assert matmul.fp32_precision == before


def test_a_module_runs_forward_and_backward_on_it(simulated):
    lstm = fastlstm.LSTM(4, 8, dtype=torch.float16)
    x = torch.randn(3, 2, 4, dtype=torch.float16)
    with fastlstm.backend("cuda"):
        out = lstm(x)[0]
        out.sum().backward()
    assert out.isfinite().all()
    assert simulated


def test_the_row_address_of_an_input_side_at_a_low_address_wraps(monkeypatch):
    """Kernels count rows from the first of all; where a chunk lies lower than its rows are many, that address wraps."""
    monkeypatch.setattr(cuda_launch, "_CHUNK_BYTES", 1)
    x, w_x, addresses = torch.randn(3, 2), torch.randn(8, 2), []
    rt, steps = SimpleNamespace(use=lambda *_: 40), cuda_launch.StepRows.of(x[:, None], 1, None, False)
    inputs = SimpleNamespace(x=x, w_x=w_x, bias=None)
    layer = SimpleNamespace(rt=rt, inputs=inputs, steps=steps, N=3, args=SimpleNamespace())
    for begin, end in cuda_launch.input_chunks(layer, 1):
        cuda_launch.ForwardLayer.input_side(layer, begin, end)
        addresses.append(layer.args.x_gates)
    assert [(address + k * 32) % 2**64 for k, address in enumerate(addresses)] == [40, 40, 40]


@pytest.mark.parametrize(("kernel", "most"), [("per_step", 8), ("cooperative", 256), ("lean", 256)])
def test_an_input_side_that_is_not_kept_is_small(simulated, monkeypatch, kernel, most):
    """Only launches that load W_hh get at least 256 steps of it at once."""
    row_counts, input_side = [], cuda_launch.input_side
    monkeypatch.setattr(cuda_launch, "_CHUNK_BYTES", 8 * 3 * 4 * 32 * 2)
    monkeypatch.setattr(
        cuda_launch, "input_side", lambda x, *rest: row_counts.append(x.shape[0]) or input_side(x, *rest)
    )
    lstm, x = fastlstm.LSTM(2, 32, dtype=torch.bfloat16), torch.randn(300, 3, 2, dtype=torch.bfloat16)
    with fastlstm.backend("cuda"), CUDA.force(kernel), torch.no_grad():
        lstm(x)
    assert max(row_counts) == 3 * most
    assert sum(row_counts) == 3 * 300


@pytest.mark.parametrize("change", [lambda t: t.half(), lambda t: t[..., :-1]], ids=["type", "size"])
def test_what_hooks_give_back_does_not_reach_a_kernel_unchecked(simulated, change):
    lstm, x = fastlstm.LSTM(4, 8), torch.randn(3, 2, 4)
    changed = lambda t: change(t) if t.shape == (3, 2, 32) else t  # noqa: E731 (the gates)
    with fastlstm.backend("cuda"), torch.autograd.graph.saved_tensors_hooks(changed, lambda t: t):
        out = lstm(x)[0]
    with pytest.raises(RuntimeError, match=r"gates (is torch.float16, expected torch.float32|has shape)"):
        out.sum().backward()


def test_the_gpu_has_every_method_of_a_runtime():
    for name in ("use", "product", "product_type"):
        assert hasattr(cuda_launch.Runtime, name)
        assert hasattr(cuda._Gpu, name)
