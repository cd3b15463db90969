"""The cuda backend with several layers, or both directions, in one launch: when it does so, and what goes wrong."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

import fastlstm
from fastlstm import dispatch, verify
from fastlstm.backends import blocklist, load
from fastlstm.backends.base import UnfitError
from fastlstm.backends.cuda import backend as cuda
from fastlstm.backends.cuda import status as cuda_status
from fastlstm.doctor import small_call
from fastlstm.testing import layers
from fastlstm.verify import correctness
from tests.hostsim import backend as hostsim
from tests.hostsim.shapes import dense

CUDA = load("cuda")
GPU = replace(small_call(torch.device("cpu")), device=torch.device("cuda:0"), dtype=torch.bfloat16, H=512, P=512, B=16)


def _run(count: int = 2, directions: int = 1, **options) -> str:
    """A training step of a module on the cuda backend; what ran."""
    torch.manual_seed(0)
    lstm = fastlstm.LSTM(3, 16, count, bidirectional=directions == 2, dtype=torch.bfloat16, **options)
    x = torch.randn(4, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with fastlstm.backend("cuda"):
        out = lstm(x)[0]
        ran = dispatch.last_plan()
        out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    return ran


def test_layers_and_directions_go_into_one_launch(simulated):
    assert _run(2).startswith("cuda: 2 layers in one launch, lean: ")
    assert _run(3).startswith("cuda: 3 layers in one launch, lean: ")
    assert _run(2, 2).startswith("cuda: 2 directions in one launch, lean: ")
    assert "in one launch" not in _run(1)


def test_by_the_rule_of_accuracy(simulated):
    for case in (dense(4, 3, 16, reset=True), dense(3, 5, 24)):
        for count, chained in ((2, True), (2, False)):
            layers.check(CUDA, case, torch.bfloat16, count=count, chained=chained)


def test_as_many_layers_as_fit_then_the_next(simulated):
    """Five multiprocessors take four layers of one block each and one more; six layers go in two launches."""
    launches = []
    forward = cuda.layers.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda.layers, "forward", lambda *a: launches.append(len(a[2])) or forward(*a))
        assert "in one launch" in _run(7)
    assert launches == [5, 2]


def test_layers_that_do_not_fit_run_one_by_one(lib):
    """On an H100: two of H 512, not two of H 2048."""
    assert CUDA.layers_together(GPU, 2, chained=True) == 2
    assert CUDA.layers_together(GPU, 2, chained=False) == 2
    assert CUDA.layers_together(replace(GPU, H=256, P=256, B=10), 6, chained=True) == 6
    for other in ({"H": 2048, "P": 2048}, {"H": 511, "P": 511}, {"projected": True, "P": 8}, {"N": 2**31}):
        assert CUDA.layers_together(replace(GPU, **other), 2, chained=True) == 1


def test_a_forced_kernel_of_one_layer_is_used_layer_by_layer(simulated):
    for kernel, together in (("lean", False), ("cooperative", False), ("lean_layers", True)):
        with CUDA.force(kernel):
            assert ("in one launch" in _run(2)) == together


def test_a_refused_launch_is_not_tried_again(simulated, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="fastlstm")
    launchers, tried = hostsim.library().cuda, []

    def refuse(*args):
        tried.append(args)
        raise launchers.RefusedLaunchError("lean_layers_forward: too many blocks in cooperative launch, code 720")

    monkeypatch.setattr(launchers, "lean_layers_forward", refuse)
    for _ in range(2):
        assert "in one launch" not in _run(2)
    assert len(tried) == 1
    assert "kernel lean_layers (float32, tf32, bfloat16, float16) is not used again on cuda:3" in caplog.text


def test_a_refused_backward_goes_layer_by_layer(simulated, monkeypatch):
    launchers = hostsim.library().cuda

    def refuse(*args):
        raise launchers.RefusedLaunchError("lean_layers_backward: too many blocks in cooperative launch, code 720")

    monkeypatch.setattr(launchers, "lean_layers_backward", refuse)
    assert "in one launch" in _run(2)
    assert blocklist.blocked("cuda", 3, "", "bfloat16").keys() == {"lean_layers"}


def test_what_ran_is_told_after_it_is_not_planned_any_more(simulated):
    _run(2)
    x = torch.randn(4, 3, 3, dtype=torch.bfloat16)
    with fastlstm.backend("cuda"), torch.no_grad():
        fastlstm.LSTM(3, 16, 2, dtype=torch.bfloat16)(x)
    blocklist.block("cuda", 3, "lean_layers", ("bfloat16",), "for a test")
    assert dispatch.last_plan() == "cuda: 2 layers in one launch of lean, which is not planned now"


def test_output_of_frozen_layers_can_be_changed_in_place(simulated):
    """With gradients on and nothing that requires one, as from layers one by one."""
    lstm = fastlstm.LSTM(3, 16, 2, dtype=torch.bfloat16).requires_grad_(False)
    scale = torch.ones(16, dtype=torch.bfloat16, requires_grad=True)
    with fastlstm.backend("cuda"):
        out = lstm(torch.randn(4, 3, 3, dtype=torch.bfloat16))[0]
    out.mul_(scale).sum().backward()
    assert scale.grad.isfinite().all()


def test_recompute_goes_back_layer_by_layer(simulated, monkeypatch):
    """The gates of all layers at once would take the memory that it saves."""
    backward = []
    monkeypatch.setattr(cuda.layers, "backward", lambda *a: backward.append(a))
    assert "in one launch" in _run(2, recompute=True)
    assert not backward


def test_layers_of_several_sizes_or_types_are_refused(simulated):
    launchers = hostsim.library().cuda
    args = [launchers.ForwardArgs(), launchers.ForwardArgs()]
    for given, T in zip(args, (3, 4), strict=True):
        given.T, given.B, given.H = T, 2, 16
    with pytest.raises(ValueError, match="a layer has T 4, B 2 and H 16, the first has T 3, B 2 and H 16"):
        launchers.lean_layers_forward(3, args, [0, 0], [6, 6], 0)
    inputs = layers.inputs_of(dense(3, 2, 16), torch.bfloat16, 2, False)
    inputs[1] = layers.inputs_of(dense(3, 2, 16), torch.float16, 1, False)[0]
    with pytest.raises(RuntimeError, match="layers of one launch have types"):
        CUDA.forward_layers(inputs, False)


def test_a_launch_that_timed_out_is_told_by_its_name(lib):
    assert CUDA.layers_together(GPU, 2, chained=True) == 2
    cuda_status.word(0, "lean_layers", "bfloat16")[0] = cuda_status.TIMED_OUT
    with pytest.raises(cuda_status.GaveUpError, match="kernel lean_layers in bfloat16"):
        cuda_status.raise_on(0)
    assert CUDA.layers_together(GPU, 2, chained=True) == 1
    assert CUDA.kernels(GPU)[0] == "lean"


def test_without_a_request_only_what_was_verified_runs(lib, monkeypatch):
    monkeypatch.setattr(dispatch, "choose", lambda spec: "cuda")
    for passed in (False, True):
        monkeypatch.setattr(verify, "all_passed", lambda *_, p=passed: p)
        assert dispatch.layers_together(GPU, 2, True) == (2 if passed else 1)


def test_verify_checks_launches_of_layers(simulated):
    run = correctness.CaseRun("lean_layers", "bfloat16", dense(3, 3, 16), 1)
    assert correctness.outcome_of(CUDA, run, torch.device("cpu")).verdict is correctness.Verdict.PASSED
    odd = correctness.CaseRun("lean_layers", "bfloat16", dense(3, 3, 15), 1)
    assert correctness.outcome_of(CUDA, odd, torch.device("cpu")).verdict is correctness.Verdict.SKIPPED


def test_a_backend_without_such_launches_runs_layer_by_layer():
    reference = load("reference")
    assert reference.layers_together(GPU, 3, chained=True) == 1
    with pytest.raises(UnfitError, match="layer by layer"):
        reference.backward_layers([], [], [], True)
