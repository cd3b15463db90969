"""A GPU that does not take a launch whose blocks wait for each other (MIG, MPS, a green context): other kernels run."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from fastlstm.backends import cost_model, load
from fastlstm.backends.base import BackendError
from fastlstm.backends.cuda import backend as cuda
from fastlstm.doctor import small_call
from fastlstm.ops.arguments import OpInputs, Spec
from fastlstm.testing import accuracy
from fastlstm.testing.cases import Case, make
from tests.hostsim import backend as hostsim

CUDA = load("cuda")
WAITING = ("lean", "cooperative")  # kernels whose blocks wait for each other, in the order in which they are planned
CASE = Case(id="spread", T=3, B=2, I=3, H=136, P=136, lengths=(3, 2), reset=True)  # the planner spreads it over blocks


@pytest.fixture
def refused(simulated, monkeypatch, request):
    """The simulated GPU as part of a real one; the launches that it has refused."""
    launchers, launches = hostsim.library().cuda, []

    def refuse(kernel: str):
        def launch(*args):
            launches.append(kernel)
            raise launchers.RefusedLaunchError(f"{kernel}: too many blocks in cooperative launch, code 720")

        return launch

    for direction in getattr(request, "param", ("forward", "backward")):
        for kernel in WAITING:
            monkeypatch.setattr(launchers, f"{kernel}_{direction}", refuse(kernel))
    gpu = replace(cost_model.KNOWN["H100"], sms=20, shared_kib=99)  # enough for `lean` to spread the case over
    monkeypatch.setattr(cuda, "_gpu", lambda index: gpu)
    with hostsim.settings(sms=gpu.sms):
        yield launches


def spec_of(dtype: torch.dtype) -> Spec:
    sizes = {"T": CASE.T, "B": CASE.B, "N": CASE.N, "I": CASE.I, "H": CASE.H, "P": CASE.P}
    return replace(small_call(torch.device("cpu")), dtype=dtype, packed=True, reset=True, **sizes)


def test_the_launchers_have_an_error_for_a_refused_launch():
    if reason := hostsim.BACKEND.unsupported_reason(small_call(torch.device("cpu"))):
        pytest.skip(reason)
    assert issubclass(hostsim.library().cuda.RefusedLaunchError, RuntimeError)


def test_another_kernel_runs_the_call_and_all_later_ones(refused, caplog):
    caplog.set_level(logging.WARNING, logger="fastlstm")
    for dtype in (torch.bfloat16, torch.float16):
        assert CUDA.kernels(spec_of(dtype)) == (("per_step" if refused else WAITING[0]),) * 2
        accuracy.check_backend(CUDA, CASE, dtype)
        assert refused == [*WAITING]  # one after the other, in one type, and no other is tried
    assert len(caplog.records) == len(WAITING)
    for kernel in WAITING:
        assert f"{kernel} (float32, tf32, bfloat16, float16) is not used again on cuda:3" in caplog.text
        assert f"refused its launch ({kernel}: too many blocks in cooperative launch, code 720)" in caplog.text


@pytest.mark.parametrize("refused", [("backward",)], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_backward_that_is_refused_after_its_forward_runs_on_another_kernel(refused, dtype):
    accuracy.check_backend(CUDA, CASE, dtype)
    assert refused == ([*WAITING] if dtype == torch.bfloat16 else ["cooperative"])


@pytest.mark.parametrize("kernel", WAITING)
def test_a_kernel_forced_by_its_name_says_so(refused, kernel):
    with CUDA.force(kernel), pytest.raises(BackendError, match="the GPU refused its launch"):
        CUDA.forward(OpInputs(*make(CASE, torch.bfloat16), False, 1))
    assert refused == [kernel]


def test_other_errors_of_a_launch_are_raised(simulated, monkeypatch):
    def fail(*args):
        raise RuntimeError("cooperative_forward: out of memory")

    monkeypatch.setattr(hostsim.library().cuda, "cooperative_forward", fail)
    with pytest.raises(hostsim.Fault, match="out of memory"):
        CUDA.forward(OpInputs(*make(CASE, torch.float32), False, 1))
    assert CUDA.kernels(spec_of(torch.float32)) == ("cooperative", "cooperative")
