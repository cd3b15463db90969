"""`fastlstm doctor --verify` without a GPU: a fake device and timer, backends that run on the CPU."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastlstm import backends, dispatch, reference
from fastlstm.backends.common import BackendError
from fastlstm.verify import checks, isolate, record, timings
from fastlstm.verify.cases import SHORT
from fastlstm.verify.run import FINE, NO_GPU, WRONG, Machine, Plan, gpus, verify

ROOT = Path(__file__).parent.parent.parent
SMALL = checks.Table((SHORT[0], SHORT[5]), ("float32", "bfloat16"))
CELLS = tuple(timings.grid("dense", (4, 8), (2,), (3,), maths=("float32",)))


def clock(*costs: float):
    """A timer for which the contenders of a round take these seconds in turn."""
    steps = itertools.chain.from_iterable((0.0, cost) for cost in itertools.cycle(costs))
    told = itertools.accumulate(steps)
    return lambda: next(told)


def machine(*costs: float) -> Machine:
    return Machine(torch.device("cpu"), "Fake GPU", clock(*costs))


def plan(*candidates: str, **changes) -> Plan:
    return Plan(candidates, **{"table": SMALL, "cells": CELLS, "process": isolate.here, **changes})


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CACHE", str(tmp_path))
    yield
    record.read.cache_clear()
    record._decided.cache_clear()


@pytest.fixture
def broken(monkeypatch):
    """A backend `cuda` whose h is a little off, as a wrong kernel's would be."""

    def forward(*args):
        h, *rest = reference.forward(*args)
        return h * 1.001, *rest

    module = SimpleNamespace(
        NAME="cuda",
        why_not=lambda spec: None,
        plan=lambda spec: "cuda: broken",
        forward=forward,
        backward=reference.backward,
    )
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: module if name == "cuda" else load(name))
    monkeypatch.setattr(dispatch, "why_not", lambda name, spec: None)
    return module


def test_what_passed_and_won_is_recorded():
    said = []
    assert verify(said.append, [machine(2.0, 1.0, 3.0)], plan("cpu", "reference")) == FINE
    found = record.read("Fake GPU")
    assert found["passed"]["reference"] == {"reference": 4}
    assert found["failed"] == {}
    assert found["timings"][0]["seconds"] == {"torch": 2.0, "cpu": 1.0, "reference": 3.0}
    assert len(found["timings"]) == len(CELLS)
    assert record.winner(found, ("dense", "float32", True), 5, 2, 3) == "cpu"
    assert any("cpu faster in 2 of 2, median 2.00 x torch's speed" in line for line in said)
    assert any("recorded in" in line for line in said)


def test_a_wrong_backend_is_named_recorded_and_not_timed(broken):
    said = []
    assert verify(said.append, [machine(2.0, 1.0)], plan("cuda", "reference")) == WRONG
    assert any("cuda: WRONG:" in line and "relative error" in line for line in said)
    found = record.read("Fake GPU")
    assert set(found["failed"]) == {"cuda"}
    assert all(set(row["seconds"]) == {"torch", "reference"} for row in found["timings"])


def test_a_backend_that_is_not_here_is_named_with_its_reason():
    said = []
    verify(said.append, [machine(2.0, 1.0)], plan("cuda", "reference"))
    assert any(line.startswith("  cuda: not here: ") for line in said)
    assert set(record.read("Fake GPU")["absent"]) == {"cuda"}


def test_a_crash_while_timing_records_nothing():
    def process(work, *args, seconds):
        if work is timings.run:
            raise isolate.LostError("the process ended with code -11")
        return isolate.here(work, *args, seconds=seconds)

    said = []
    assert verify(said.append, [machine(2.0, 1.0)], plan("reference", process=process)) == WRONG
    assert record.read("Fake GPU") is None
    assert any("code -11. Nothing was recorded" in line for line in said)


def test_a_crash_while_checking_fails_the_backend():
    def process(work, *args, seconds):
        if work is checks.run:
            raise isolate.LostError("nothing came for 300 s; it was ended")
        return isolate.here(work, *args, seconds=seconds)

    assert verify(lambda line: None, [machine(2.0)], plan("reference", process=process)) == WRONG
    assert record.read("Fake GPU")["failed"] == {"reference": ["after 0 checks: nothing came for 300 s; it was ended"]}


def test_a_device_error_ends_the_checks_of_a_backend(broken):
    def forward(*args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    broken.forward = forward
    found = list(checks.run("cuda", torch.device("cpu"), SMALL))
    assert len(found) == 1
    assert "illegal memory access" in found[0].wrong


def test_a_kernel_that_does_not_take_a_case_is_skipped(broken):
    broken.why_not = lambda spec: "no"
    assert {outcome.skipped for outcome in checks.run("cuda", torch.device("cpu"), SMALL)} == {"no"}


def test_a_contender_that_cannot_run_a_cell_is_left_out():
    def cannot():
        raise BackendError("no")

    assert timings.times({"torch": lambda: None, "cuda": cannot}, clock(2.0)) == {"torch": 2.0}

    def dead():
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(RuntimeError, match="launch failure"):
        timings.times({"torch": lambda: None, "cuda": dead}, clock(2.0))


def test_tf32_has_an_eps_of_its_own():
    from fastlstm.verify import judge

    ref = torch.ones(100, dtype=torch.float64)
    judge.check("x", ref * 1.003, ref, ref.float(), tf32=True)
    with pytest.raises(AssertionError):
        judge.check("x", ref * 1.005, ref, ref.float(), tf32=True)
    with pytest.raises(AssertionError):
        judge.check("x", ref * 1.003, ref, ref.float())


def test_tf32_is_set_and_restored():
    before = torch.backends.cudnn.allow_tf32
    with checks.tf32(not before):
        assert torch.backends.cudnn.allow_tf32 is not before
    assert torch.backends.cudnn.allow_tf32 is before


def test_packed_and_projected_calls_are_timed_too():
    cells = [c for layout in ("packed", "projected") for c in timings.grid(layout, (4,), (3,), (5,), ("float32",))]
    rows = list(timings.run(("reference",), torch.device("cpu"), tuple(cells), clock(2.0, 1.0)))
    assert [row["seconds"] for row in rows] == [{"torch": 2.0, "reference": 1.0}] * 4


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
from fastlstm.backends import hostsim
from fastlstm.verify import checks, record, run, timings
from fastlstm.verify.cases import SHORT

if __name__ == "__main__":
    hostsim.library()  # g++ takes a while when it is first built
    table = checks.Table((SHORT[3],), ("float32", "bfloat16"))
    cells = tuple(timings.grid("dense", (4,), (2,), (3,), ("bfloat16",)))
    device = torch.device("cpu")
    machine = run.Machine(device, "Fake GPU", timings.DeviceClock(device))
    code = run.verify(print, [machine], run.Plan(("triton", "hostsim"), table, cells))
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
    assert set(found["passed"]) == {"triton", "hostsim"}, done.stdout
    assert all(set(row["seconds"]) == {"torch", "triton", "hostsim"} for row in found["timings"])
