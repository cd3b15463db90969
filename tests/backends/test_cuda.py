"""The cuda backend without a GPU: its reasons, its device handling, and whole calls whose launches the simulation takes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import judge
import pytest
import torch

import fastlstm
from benchmarks.cases import SHORT
from fastlstm import gpu_model, native
from fastlstm.backends import cuda, cuda_op, device, hostsim
from fastlstm.backends.common import BackendError
from fastlstm.doctor import cuda_kernels, small_call

GPU = replace(small_call(torch.device("cpu")), device=torch.device("cuda:0"))


class Lib:
    """What fastlstm._C.cuda answers, without a driver."""

    archs = "75,80,90"

    def __init__(self, capability: int = 90, missing: str = ""):
        self.capability, self.said, self.devices = capability, missing, []

    def missing(self) -> str:
        return self.said

    def properties(self, index: int) -> tuple[int, int, int]:
        return self.capability, 132, 227 << 10

    def set_device(self, index: int) -> None:
        self.devices.append(index)


def with_cuda(launchers, planner) -> SimpleNamespace:
    """fastlstm._C as it would be with these parts."""
    module = native.load()
    return SimpleNamespace(**{**vars(module), "cuda": launchers, "plan": planner})


@pytest.fixture
def lib(monkeypatch):
    """Make fastlstm._C look as if built with CUDA; the test sets the library's fields."""
    found = Lib()
    module = with_cuda(found, native.load().plan)
    monkeypatch.setattr(native, "load", lambda: module)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB HBM3")
    caches = (cuda._no_driver, cuda._no_code, cuda._gpu, cuda._cached_choice)
    for cached in caches:
        cached.cache_clear()
    yield found
    for cached in caches:
        cached.cache_clear()


def test_without_kernels_it_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: SimpleNamespace(no_cuda="no nvcc was found when it was built"))
    reason = cuda.why_not(GPU)
    assert "no CUDA kernels, since no nvcc was found when it was built" in reason
    assert "fastlstm[cuda-build]" in reason
    assert cuda_kernels() == "none, since no nvcc was found when it was built"


def test_what_doctor_says_of_built_kernels(lib):
    assert cuda_kernels() == "for sm_75, sm_80, sm_90, and what is newer"


def test_without_a_driver_it_says_so_wherever_the_tensors_are(lib):
    lib.said = "there is no NVIDIA driver; install one"
    assert cuda.why_not(GPU) == cuda.why_not(small_call(torch.device("cpu"))) == lib.said


def test_other_devices_and_types_are_refused(lib):
    assert "tensors are on cpu" in cuda.why_not(small_call(torch.device("cpu")))
    assert "dtype is torch.float64" in cuda.why_not(replace(GPU, dtype=torch.float64))


def test_rocm_is_refused(lib, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "AMD" in cuda.why_not(GPU)


@pytest.mark.parametrize(
    ("capability", "runs"), [(70, False), (75, True), (80, True), (86, True), (89, True), (90, True), (100, True)]
)
def test_machine_code_of_one_major_version_and_ptx_for_newer_ones(lib, capability, runs):
    lib.capability = capability
    reason = cuda.why_not(GPU)
    assert (reason is None) == runs, reason
    if not runs:
        assert f"FASTLSTM_CUDA_ARCHS={capability}" in reason


def test_ptx_runs_on_nothing_older(lib):
    lib.archs, lib.capability = "75,120", 90
    assert "compute capability 9.0 and the kernels were built for 7.5, 12.0" in cuda.why_not(GPU)


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
    reason = cuda.why_not(GPU)
    assert (reason is None) == runs, reason
    if not runs:
        assert "the kernels were built for 9.0 alone" in reason
        assert f"FASTLSTM_CUDA_ARCHS={capability}" in reason


def test_plan_names_kernel_size_time_and_bound(lib):
    line = cuda.plan(replace(GPU, dtype=torch.bfloat16, H=768, P=768, B=16))
    for words in (
        "cuda: persistent: ",
        "blocks of",
        "registers",
        "KiB",
        "µs a step predicted on NVIDIA H100",
        "bound by",
    ):
        assert words in line


def test_a_forced_kernel_that_cannot_run_says_why(lib):
    with cuda.force("tile"):
        assert "do not fit one block" in cuda.why_not(replace(GPU, H=1024, P=1024))
    with cuda.force("step"):
        assert cuda.plan(GPU).startswith("cuda: step: ")
    with (
        pytest.raises(ValueError, match="kernel is 'tiles', expected one of step, tile, persistent"),
        cuda.force("tiles"),
    ):
        pass


def test_float32_follows_the_switch_of_tf32(lib, monkeypatch):
    for allowed in (True, False):
        monkeypatch.setattr(cuda, "allows_tf32", lambda allowed=allowed: allowed)
        assert cuda._choose(GPU).tf32 is allowed
    lib.capability = 75
    cuda._gpu.cache_clear()
    monkeypatch.setattr(cuda, "allows_tf32", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    assert cuda._choose(GPU).tf32 is False


def test_what_a_kernel_left_in_the_status_word_is_raised_once(monkeypatch):
    word = torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(cuda, "_status", lambda index: word)
    cuda._raise_on(0)
    word[0] = 1
    with pytest.raises(BackendError, match="waited 20 s for its own blocks"):
        cuda._raise_on(0)
    cuda._raise_on(0)
    word[0] = 2
    with pytest.raises(IndexError, match="ids outside its table"):
        cuda._raise_on(0)


def test_products_go_to_wide_results_where_torch_can():
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert device.multiplies_wide()
    with FakeTensorMode():
        a, b = (torch.empty(2, 2, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for out in (torch.empty(2, 2, device="cuda"), torch.empty_like(a)):
            cuda._Gpu.product(None, a, b, out)


@pytest.fixture
def simulated(monkeypatch):
    """The cuda backend on CPU tensors: its launches go to the host simulation, its guards are recorded."""
    reason = hostsim.why_not(small_call(torch.device("cpu")))
    if reason is not None:
        pytest.skip(reason)
    library, seen = hostsim.library(), []
    gpu = replace(gpu_model.KNOWN["H100"], sms=5, shared_kib=99)
    monkeypatch.setattr(cuda, "_index", lambda where: 3)
    monkeypatch.setattr(cuda, "_gpu", lambda index: gpu)
    monkeypatch.setattr(cuda, "why_not", lambda spec: None)
    monkeypatch.setattr(cuda, "_status", lambda index: torch.zeros(1, dtype=torch.int32))
    monkeypatch.setattr(cuda, "allows_tf32", lambda: False)
    module = with_cuda(library.cuda, library.plan)
    monkeypatch.setattr(native, "load", lambda: module)
    cuda._cached_choice.cache_clear()

    @contextmanager
    def on(where):
        seen.append(("device", where.index if isinstance(where, torch.device) else where))
        with hostsim.Simulated(library) as sim:
            monkeypatch.setattr(cuda._Gpu, "use", lambda self, *args: sim.use(*args))
            monkeypatch.setattr(cuda._Gpu, "product", lambda self, *args: sim.product(*args))
            yield

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(library.cuda, "set_device", lambda index: seen.append(("runtime", index)), raising=False)
    yield seen
    cuda._cached_choice.cache_clear()


@pytest.mark.parametrize("kernel", cuda.KERNELS)
def test_whole_calls(simulated, kernel):
    """Forward and backward of a packed case with resets, by the rule of accuracy; the device is set for both runtimes."""
    cases = [c for c in SHORT if c.H == 7 and c.packed and c.B and not c.projection]
    with cuda.force(kernel if kernel != "persistent" else None):
        judge.check_backend(cuda, cases[0], torch.bfloat16)
    assert simulated == [("device", 3), ("runtime", 3)] * (len(simulated) // 2)
    assert len(simulated) >= 4


@pytest.mark.parametrize("allowed", [True, False])
def test_products_follow_cudnns_switch(simulated, monkeypatch, allowed):
    """As in nn.LSTM, whatever torch's own products do; inside a call only."""
    seen, matmul = [], torch.backends.cuda.matmul
    monkeypatch.setattr(device, "allows_tf32", lambda: allowed)
    input_side = cuda_op.input_side
    monkeypatch.setattr(cuda_op, "input_side", lambda *a: (seen.append(matmul.fp32_precision), input_side(*a))[1])
    before = matmul.fp32_precision
    judge.check_backend(cuda, next(c for c in SHORT if c.H == 7 and not c.ids and not c.projection), torch.float32)
    assert set(seen) == {"tf32" if allowed else "ieee"}
    assert matmul.fp32_precision == before


def test_a_module_runs_through_it(simulated):
    lstm = fastlstm.LSTM(4, 8, dtype=torch.float16)
    x = torch.randn(3, 2, 4, dtype=torch.float16)
    with fastlstm.backend("cuda"):
        out = lstm(x)[0]
        out.sum().backward()
    assert out.isfinite().all()
    assert simulated


def test_an_input_side_at_a_low_address(monkeypatch):
    """Kernels count rows from the first of all; where a chunk lies lower than its rows are many, that address wraps."""
    monkeypatch.setattr(cuda_op, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(cuda_op, "_CHUNK_STEPS", 0)
    x, w_x, found = torch.randn(3, 2), torch.randn(8, 2), []
    rt, args = SimpleNamespace(use=lambda *_: 40), library_args()
    steps = cuda_op.Steps.of(x[:, None], 1, None, False)
    cuda_op._in_chunks(rt, args, steps, x, w_x, None, lambda begin, end: found.append(args.xg))
    assert [(at + k * 32) % 2**64 for k, at in enumerate(found)] == [40, 40, 40]


def library_args():
    """An argument block of the real binding, which takes addresses of 64 bits without a sign."""
    if reason := hostsim.why_not(small_call(torch.device("cpu"))):
        pytest.skip(reason)
    return hostsim.library().cuda.ForwardArgs()


def test_the_runtime_is_what_the_op_asks_for():
    for name in ("use", "product", "product_type"):
        assert hasattr(cuda_op.Runtime, name)
        assert hasattr(cuda._Gpu, name)
