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
from fastlstm.verify.run import FINE, NO_GPU, gpus
from fastlstm.verify.stages import TimeUpError
from tests.verify.verifying import CELLS, plan, verified

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.usefixtures("cache")


def test_what_passed_and_won_is_recorded():
    code, found, said = verified(2.0, 1.0, 3.0, plan=plan("cpu", "reference"))
    assert code == FINE
    assert found["passed"]["reference"] == {"": {"float32": 2, "bfloat16": 2}}
    assert found["failed"] == found["unfinished"] == {}
    assert found["timings"][0]["seconds"] == {"torch": 2.0, "cpu": 1.0, "reference": 3.0}
    assert len(found["timings"]) == len(CELLS)
    assert 0 < found["ratios"]["reference"][""]["float32"] <= 1
    assert found["redrawn"] == []
    assert record.winner(found, ("dense", "float32", True), 5, 2, 3) == "cpu"
    assert "cpu faster in 2 of 2, median 2.00 x torch's speed" in said
    assert "recorded in" in said
    assert "about 1 minute on an H100 by estimate, ended after 2" in said


def test_when_time_is_up_what_there_is_is_recorded(module):
    def process(work, todo, *args, **limits):
        for k, found in enumerate(work(todo, *args)):
            if work is timings.run and k == 30:  # a cell has 27, its row is the last
                raise TimeUpError
            yield found

    code, found, said = verified(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    assert code == FINE
    assert len(found["timings"]) == 1
    assert "timing: the time is over; 1 of 4 sizes are done" in said


def test_checks_that_were_not_done_in_time_pass_nothing(module):
    def process(work, todo, *args, **limits):
        for k, found in enumerate(work(todo, *args)):
            if work is correctness.run and k == 8:  # 4 of 8 runs
                raise TimeUpError
            yield found

    code, found, said = verified(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    assert code == FINE
    assert found["passed"] == {"cuda": {"good": {"float32": 2}, "bad": {"float32": 2}}}
    assert found["unfinished"]["cuda"] == {"good": {"bfloat16": 2}, "bad": {"bfloat16": 2}}
    assert "cuda: the time for checks is over (60 s)" in said
    assert "cuda good bfloat16: not used, since 2 of its checks were not done" in said


def test_what_checks_left_of_the_time_goes_to_timing(module):
    seen = []

    def process(work, todo, *args, seconds, until):
        seen.append((work, seconds))
        return work(todo, *args)

    verified(2.0, plan=plan("cuda", process=process, silence=7.0))
    assert seen == [(correctness.run, 7.0), (timings.run, 7.0)]


def test_where_nothing_passed_nothing_is_timed(module):
    module.unsupported_reason = lambda spec: "no"
    code, found, _ = verified(2.0, plan=plan("cuda"))
    assert code == FINE
    assert found["timings"] == []
    assert record.winner(found, ("dense", "float32", True), 4, 2, 3) == "torch"


def test_a_backend_that_is_not_here_is_named_with_its_reason():
    _, found, said = verified(2.0, 1.0, plan=plan("cuda", "reference"))
    assert "  cuda: not here: " in said
    assert set(found["absent"]) == {"cuda"}


def test_an_earlier_record_keeps_no_kernel_from_being_verified(module, monkeypatch):
    """Else one that was wrong once, by a driver long gone, would stay out for ever."""
    from fastlstm.backends import blocklist

    seen = []
    monkeypatch.setattr(dispatch, "unsupported_reason", lambda name, spec: seen.append(blocklist._override))
    verified(2.0, 1.0, plan=plan("cuda"))
    assert all(found is not None for found in seen)
    assert seen


def test_without_a_gpu_it_says_so_and_the_exit_code_too(tmp_path):
    if gpus():
        pytest.skip("there is a GPU")
    env = {**os.environ, "FASTLSTM_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "fastlstm", "doctor", "--verify"], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == NO_GPU
    assert "there is no GPU" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_gpu_backends_without_a_gpu(tmp_path):
    """Triton in its interpreter and the CUDA kernels in the host simulation, each in a process of its own."""
    code = """
import json, torch
from tests.hostsim import backend as hostsim
from fastlstm.verify import correctness, plans, record, run, timings
from fastlstm.testing.cases import SHORT

def work(present):
    table = correctness.Table((SHORT[0],), ("float32", "bfloat16"))
    cells = (timings.GridPoint("dense", "bfloat16", True, 4, 2, 2),)
    return plans.Workload(dict.fromkeys(present, table), cells, 300.0, 300.0, 900.0)

if __name__ == "__main__":
    hostsim.library()  # g++ takes a while when it is first built
    device = torch.device("cpu")
    machine = run.Machine(device, "Fake GPU", timings.DeviceClock(device))
    code = run.verify(print, [machine], plans.VerifyPlan(("triton", "hostsim"), work))
    print(json.dumps([code, record.read("Fake GPU")]))
"""
    script = tmp_path / "verify_here.py"
    script.write_text(code)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "TRITON_INTERPRET": "1", "FASTLSTM_CACHE": str(tmp_path / "cache"), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, str(script)], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code == FINE, done.stdout
    assert {name: set(kernels) for name, kernels in found["passed"].items()} == {
        "triton": {"single_block", "streamed", "per_step"},
        "hostsim": {""},
    }, done.stdout
    assert all(set(row["seconds"]) == {"torch", "triton", "hostsim"} for row in found["timings"])
    assert all(set(row["kernels"]["triton"]) == {"single_block", "streamed", "per_step"} for row in found["timings"])
