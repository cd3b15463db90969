"""The gradient of the bias where `lean` adds it up while it goes backward, instead of a sum over d_gates afterwards."""

from __future__ import annotations

import pytest
import torch

from fastlstm.backends import device, load
from fastlstm.backends.cuda import backend as cuda
from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from fastlstm.backends.cuda import planner as cuda_planner
from fastlstm.backends.cuda.launch import LaunchPlan
from fastlstm.ops import reference
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from fastlstm.testing.accuracy import TF32_EPS
from fastlstm.testing.cases import Case, make, make_grads, rounded
from tests.hostsim import backend as hostsim

CUDA = load("cuda")
ALL = (True,) * 5 + (False,)
CASES = (
    Case("dense", 5, 3, 3, 16, 16),
    Case("three tiles reverse", 4, 20, 3, 24, 24, reverse=True),
    Case("packed resets", 6, 11, 3, 40, 40, lengths=(6, 6, 5, 5, 4, 4, 3, 2, 2, 1, 1), reset=True),
)


@pytest.fixture
def given(simulated, monkeypatch):
    """The simulated GPU, where d_gates of any size counts as large; the bias of every backward launch."""
    monkeypatch.setattr(cuda, "_FUSED_BIAS_BYTES", 0)
    tensors, backward = [], launch_backward.backward

    def spied(rt, plan, inputs, saved, grads, bias=None):
        tensors.append(bias)
        return backward(rt, plan, inputs, saved, grads, bias)

    monkeypatch.setattr(launch_backward, "backward", spied)
    return tensors


def _arguments(case: Case, dtype: torch.dtype) -> tuple[OpInputs, Saved, Grads]:
    inputs = OpInputs(*make(case, dtype), case.reverse, 1)
    return inputs, Saved(*reference.forward(*inputs)[:3]), Grads(*make_grads(case, dtype))


def _in_float64(case: Case, inputs: OpInputs, saved: Saved, grads: Grads) -> torch.Tensor:
    wide = make(case, inputs.w_hh.dtype).to(torch.float64)
    d_gates = reference.backward(*rounded(grads, torch.float64), *wide, case.reverse, 1, *(v.double() for v in saved))[
        0
    ]
    return d_gates.reshape(-1, d_gates.shape[-1]).sum(0)


def _error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result.double() - expected).norm() / expected.norm()).item()


def _check(case: Case, dtype: torch.dtype, eps: float) -> None:
    """Once with the kernel's sum, by the rule of accuracy; the other gradients keep their bits."""
    inputs, saved, grads = _arguments(case, dtype)
    expected = _in_float64(case, inputs, saved, grads)
    d_gates = reference.backward(*grads, *inputs, *saved)[0]
    own = d_gates.reshape(-1, d_gates.shape[-1]).sum(0)
    out = CUDA.gradients(ALL, inputs, saved, grads)
    assert (out[3].dtype, out[3].shape) == (dtype, own.shape)
    assert _error(out[3], expected) <= max(2 * _error(own, expected), 4 * eps)
    without = CUDA.gradients((True, True, True, False, True, False), inputs, saved, grads)
    assert without[3] is None
    for a, b in zip(out[:3] + out[4:], without[:3] + without[4:], strict=True):
        assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_lean_adds_up_the_gradient_of_the_bias(given, monkeypatch, case, dtype):
    tf32 = dtype == torch.float32
    monkeypatch.setattr(device, "allows_tf32", lambda: tf32)
    with CUDA.force("lean"):
        _check(case, dtype, TF32_EPS if tf32 else torch.finfo(dtype).eps)
        row_blocks = cuda._choose(_arguments(case, dtype)[0].spec()).backward.t.row_blocks
    assert (given[0].dtype, given[0].shape) == (torch.float32, (row_blocks, 4 * case.H))
    assert given[1:] == [None]  # where no gradient of the bias was asked for


def test_several_launches_and_parts_of_the_gates_add_to_the_same_sums(given, monkeypatch):
    """H 64 in slices of 16 units, and a launch for each step: as where the partial sums would take too much memory."""
    case = Case("parts", 5, 8, 3, 64, 64)
    lib, gpu = hostsim.library().plan, cuda_planner.gpu(hostsim.library().plan, cuda._gpu(3))
    tiling = lib.Tiling()
    for name, value in zip(hostsim.TILING, (4, 1, 4, 8, 1, 1, 4), strict=True):
        setattr(tiling, name, value)
    chosen = lib.fit(gpu, cuda_launch.TYPE_CODES[torch.bfloat16], case.H, case.B, True, "lean", tiling)
    monkeypatch.setattr(cuda, "_choose", lambda spec: LaunchPlan(chosen, chosen, False))
    monkeypatch.setattr(launch_backward, "_PARTIAL_BYTES", 1)
    _check(case, torch.bfloat16, torch.finfo(torch.bfloat16).eps)
    assert given[0].shape == (1, 4 * case.H)


@pytest.mark.parametrize("kernel", ["per_step", "single_block", "cooperative"])
def test_other_kernels_leave_the_sum_to_torch(given, kernel):
    inputs, saved, grads = _arguments(CASES[0], torch.bfloat16)
    with CUDA.force(kernel):
        assert CUDA.gradients(ALL, inputs, saved, grads)[3] is not None
    assert given == [None]


def test_small_gradients_are_left_to_torch(given, monkeypatch):
    inputs, saved, grads = _arguments(CASES[0], torch.bfloat16)
    size = 2 * 4 * CASES[0].H * CASES[0].N
    for limit, asked in ((size, True), (size + 1, False)):
        monkeypatch.setattr(cuda, "_FUSED_BIAS_BYTES", limit)
        with CUDA.force("lean"):
            CUDA.gradients(ALL, inputs, saved, grads)
        assert (given[-1] is not None) == asked


def test_a_refused_launch_leaves_nothing_in_the_sum(given, monkeypatch):
    launchers = hostsim.library().cuda

    def refuse(*args):
        raise launchers.RefusedLaunchError("lean: too many blocks in cooperative launch, code 720")

    monkeypatch.setattr(launchers, "lean_backward", refuse)
    case = CASES[0]
    inputs, saved, grads = _arguments(case, torch.bfloat16)
    with CUDA.force("lean"):
        chosen = cuda._choose(inputs.spec())
    monkeypatch.setattr(cuda, "_choose", lambda spec, choose=cuda._choose: chosen if not given else choose(spec))
    expected = _in_float64(case, inputs, saved, grads)
    assert _error(CUDA.gradients(ALL, inputs, saved, grads)[3], expected) < 4 * torch.finfo(torch.bfloat16).eps
    assert [bias is not None for bias in given] == [True, False]
