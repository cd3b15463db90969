"""`fastlstm doctor --verify` without a GPU: a fake device and timer, backends that run on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm import dispatch
from fastlstm.verify import correctness, record, timings
from fastlstm.verify.run import NO_GPU, PASSED, gpus
from fastlstm.verify.stages import DeadlineError
from tests.verify.fakes import POINTS, plan, run_verify

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.usefixtures("cache")


def test_kernels_that_passed_and_their_timings_are_recorded():
    code, recorded, output = run_verify(2.0, 1.0, 3.0, plan=plan("cpu", "reference"))
    assert code == PASSED
    assert recorded["passed"]["reference"] == {"": {"float32": 2, "bfloat16": 2}}
    assert recorded["failed"] == recorded["unfinished"] == {}
    assert recorded["timings"][0]["seconds"] == {"torch": 2.0, "cpu": 1.0, "reference": 3.0}
    assert len(recorded["timings"]) == len(POINTS)
    assert 0 < recorded["ratios"]["reference"][""]["float32"] <= 1
    assert recorded["redrawn"] == []
    assert record.winner(recorded, ("dense", "float32", True), 5, 2, 3) == "cpu"
    assert "cpu faster in 2 of 2, median 2.00 x torch's speed" in output
    assert "recorded in" in output
    assert "about 1 minute on an H100 by estimate, ended after 2" in output


def test_rows_timed_before_the_deadline_are_recorded(fake_backend):
    def process(work, items, *args, **limits):
        for k, value in enumerate(work(items, *args)):
            if work is timings.run and k == 30:  # a point has 27, its row is the last
                raise DeadlineError
            yield value

    code, recorded, output = run_verify(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    assert code == PASSED
    assert len(recorded["timings"]) == 1
    assert "timing: the time is over; 1 of 4 sizes are done" in output


def test_a_kernel_with_unfinished_checks_does_not_pass(fake_backend):
    def process(work, items, *args, **limits):
        for k, value in enumerate(work(items, *args)):
            if work is correctness.run and k == 8:  # 4 of 8 runs
                raise DeadlineError
            yield value

    code, recorded, output = run_verify(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    assert code == PASSED
    assert recorded["passed"] == {"cuda": {"good": {"float32": 2}, "bad": {"float32": 2}}}
    assert recorded["unfinished"]["cuda"] == {"good": {"bfloat16": 2}, "bad": {"bfloat16": 2}}
    assert "cuda: the time for checks is over (60 s)" in output
    assert "cuda good bfloat16: not used, since 2 of its checks were not done" in output


def test_checks_and_timings_run_with_the_same_timeout(fake_backend):
    timeouts = []

    def process(work, items, *args, seconds, deadline):
        timeouts.append((work, seconds))
        return work(items, *args)

    run_verify(2.0, plan=plan("cuda", process=process, timeout=7.0))
    assert timeouts == [(correctness.run, 7.0), (timings.run, 7.0)]


def test_nothing_is_timed_where_no_kernel_passed(fake_backend):
    fake_backend.unsupported_reason = lambda spec: "no"
    code, recorded, _ = run_verify(2.0, plan=plan("cuda"))
    assert code == PASSED
    assert recorded["timings"] == []
    assert record.winner(recorded, ("dense", "float32", True), 4, 2, 3) == "torch"


def test_an_unavailable_backend_is_printed_with_its_reason():
    _, recorded, output = run_verify(2.0, 1.0, plan=plan("cuda", "reference"))
    assert "  cuda: not here: " in output
    assert set(recorded["absent"]) == {"cuda"}


def test_kernels_that_an_earlier_record_has_as_wrong_are_verified_again(fake_backend, monkeypatch):
    """Else one that was wrong once, by a driver long gone, would stay out for ever."""
    from fastlstm.backends import blocklist

    overrides = []
    monkeypatch.setattr(dispatch, "unsupported_reason", lambda name, spec: overrides.append(blocklist._override))
    run_verify(2.0, 1.0, plan=plan("cuda"))
    assert all(override is not None for override in overrides)
    assert overrides


def test_without_a_gpu_the_command_prints_so_and_exits_with_no_gpu(tmp_path):
    if gpus():
        pytest.skip("there is a GPU")
    env = {**os.environ, "FASTLSTM_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "fastlstm", "doctor", "--verify"], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == NO_GPU
    assert "there is no GPU" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_triton_and_the_cuda_kernels_pass_without_a_gpu(tmp_path):
    """Triton in its interpreter and the CUDA kernels in the host simulation, each in a process of its own."""
    code = """
import json, torch
from tests.hostsim import backend as hostsim
from fastlstm.verify import correctness, plans, record, run, timings
from fastlstm.testing.cases import SHORT

def workload(present):
    table = correctness.Table((SHORT[0],), ("float32", "bfloat16"))
    points = (timings.TimingPoint("dense", "bfloat16", True, 4, 2, 2),)
    return plans.VerifyWorkload(dict.fromkeys(present, table), points, 300.0, 300.0, 900.0)

if __name__ == "__main__":
    hostsim.library()  # g++ takes a while when it is first built
    device = torch.device("cpu")
    machine = run.Machine(device, "Fake GPU", timings.DeviceClock(device))
    code = run.verify(print, [machine], plans.VerifyPlan(("triton", "hostsim"), workload))
    print(json.dumps([code, record.read("Fake GPU")]))
"""
    script = tmp_path / "verify_here.py"
    script.write_text(code)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "TRITON_INTERPRET": "1", "FASTLSTM_CACHE": str(tmp_path / "cache"), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, str(script)], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, recorded = json.loads(done.stdout.splitlines()[-1])
    assert code == PASSED, done.stdout
    assert {name: set(kernels) for name, kernels in recorded["passed"].items()} == {
        "triton": {"single_block", "streamed", "per_step"},
        "hostsim": {""},
    }, done.stdout
    assert all(set(row["seconds"]) == {"torch", "triton", "hostsim"} for row in recorded["timings"])
    assert all(set(row["kernels"]["triton"]) == {"single_block", "streamed", "per_step"} for row in recorded["timings"])
