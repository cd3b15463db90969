"""`fastlstm doctor --verify` without a GPU: a fake device and timer, backends that run on the CPU."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastlstm import backends, dispatch, reference
from fastlstm.verify import checks, isolate, record, timings
from fastlstm.verify.cases import SHORT
from fastlstm.verify.plans import Plan, Work
from fastlstm.verify.run import FINE, NO_GPU, WRONG, Machine, gpus, verify
from fastlstm.verify.stages import TimeUpError

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


def plan(*candidates: str, process=isolate.here, table=SMALL, cells=CELLS, **limits) -> Plan:
    limits = {"silence": 60.0, "checking": 60.0, "whole": 120.0, **limits}
    return Plan(candidates, lambda present: Work(dict.fromkeys(present, table), cells, **limits), process)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CACHE", str(tmp_path))
    yield
    record.forget()


@pytest.fixture
def module(monkeypatch):
    """A backend `cuda` with kernels `good` and `bad`; the test says what `bad` does with its results and types."""
    forced = [""]

    @contextmanager
    def force(kernel):
        forced.append(kernel)
        yield
        forced.pop()

    def forward(*args):
        found = reference.forward(*args)
        return made.spoil(*found) if forced[-1] == "bad" else found

    made = SimpleNamespace(
        NAME="cuda",
        KERNELS=("good", "bad"),
        why_not=lambda spec: None,
        planned=lambda spec: ("good", "good"),
        force=force,
        forward=forward,
        backward=reference.backward,
        spoil=lambda h, *rest: (h, *rest),
    )
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: made if name == "cuda" else load(name))
    monkeypatch.setattr(dispatch, "why_not", lambda name, spec: None)
    return made


def verified(*costs: float, plan: Plan) -> tuple[int, dict, str]:
    """The exit code, the record and what was said."""
    said = []
    code = verify(said.append, [machine(*costs)], plan)
    record.forget()
    return code, record.read("Fake GPU"), "\n".join(said)


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


def test_a_wrong_kernel_is_left_out_in_its_type_alone(module):
    module.spoil = lambda h, *rest: (h * 1.001 if h.dtype == torch.float32 else h, *rest)
    code, found, said = verified(2.0, 1.0, plan=plan("cuda"))
    assert code == WRONG
    assert "cuda bad float32: WRONG: " in said
    assert "relative error" in said
    assert list(found["failed"]["cuda"]) == ["bad"]
    assert list(found["failed"]["cuda"]["bad"]) == ["float32"]
    assert len(found["failed"]["cuda"]["bad"]["float32"]) == 2  # the other case was run as well
    assert found["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}, "bad": {"bfloat16": 2}}
    assert found["ratios"]["cuda"]["bad"]["float32"] > 10
    assert [len(drawn["ratios"]) for drawn in found["redrawn"]] == [3, 3]
    assert [row["kernels"] for row in found["timings"]] == [{"cuda": {"good": 1.0}}] * len(CELLS)
    assert record.wrong("Fake GPU", "cuda", "float32") == {"bad"}
    assert record.wrong("Fake GPU", "cuda", "bfloat16") == frozenset()


def test_a_device_fault_takes_out_a_kernel_and_type_and_the_rest_goes_on(module):
    """The process ends with it; here the fresh one is this one again."""

    def spoil(h, *rest):
        if h.dtype == torch.float32:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return (h, *rest)

    module.spoil = spoil
    begun = []

    def process(work, todo, *args, **limits):
        begun.append((work.__module__.split(".")[-1], len(todo)))
        return work(todo, *args)

    _, found, _ = verified(2.0, 1.0, plan=plan("cuda", process=process))
    # 8 runs; the second is the fault, after it the other case of that kernel and type is not tried
    assert begun == [("checks", 8), ("checks", 5), ("timings", 4)]
    assert list(found["failed"]["cuda"]["bad"]) == ["float32"]
    assert len(found["failed"]["cuda"]["bad"]["float32"]) == 1
    assert found["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}, "bad": {"bfloat16": 2}}


def test_a_kernel_that_hung_is_not_tried_in_other_types(module):
    from fastlstm.backends.cuda_status import GaveUpError

    asked = []

    def spoil(h, *rest):
        asked.append(h.dtype)
        raise GaveUpError("an earlier call on cuda:0 gave up")

    module.spoil = spoil
    _, found, said = verified(2.0, 1.0, plan=plan("cuda"))
    assert len(asked) == 1
    assert list(found["failed"]["cuda"]["bad"]) == ["float32"]
    assert found["unfinished"] == {"cuda": {"bad": {"bfloat16": 2}}}
    assert "cuda bad bfloat16: not used, since 2 of its checks were not done" in said
    assert found["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}}


def losing(stage: str, at: int, why: str = "nothing came for 60 s; it was ended"):
    """A process that is lost once, in a stage, after so much of it came."""
    lost = []

    def process(work, todo, *args, **limits):
        for k, found in enumerate(work(todo, *args)):
            if work.__module__.endswith(stage) and k == at and not lost:
                lost.append(found)
                raise isolate.LostError(why)
            yield found

    return process


def test_a_process_that_is_lost_while_checking_takes_one_kernel_with_it(module):
    # begun, outcome, begun: the second run is lost
    code, found, said = verified(2.0, 1.0, plan=plan("cuda", process=losing("checks", 3)))
    assert code == WRONG
    assert found["failed"]["cuda"] == {"bad": {"float32": [f"{SHORT[0].id}: nothing came for 60 s; it was ended"]}}
    assert found["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}}
    assert "cuda bad float32: WRONG" in said


def test_rows_are_kept_when_a_process_is_lost_while_timing(module):
    """In the second cell, with the kernel `bad`: [cell, torch, good, bad, turns, row] then the same."""
    code, found, said = verified(2.0, 1.0, 4.0, plan=plan("cuda", process=losing("timings", 10, "code -11")))
    assert code == WRONG
    assert [row["H"] for row in found["timings"]] == [4, 4, 8]  # H 8 in training is lost, what follows is not
    assert found["failed"]["cuda"] == {"bad": {"float32": ["timed at dense float32 training H 8 B 2 T 3: code -11"]}}
    assert [list(row["kernels"]["cuda"]) for row in found["timings"]] == [["good", "bad"], ["good"], ["good"]]
    assert all(row["seconds"].keys() == {"torch", "cuda"} for row in found["timings"])
    assert "timing dense float32 training H 8 B 2 T 3 cuda bad float32: WRONG: code -11" in said


def test_a_process_that_is_lost_while_all_take_turns_loses_the_cell_alone(module):
    code, found, _ = verified(2.0, 1.0, 4.0, plan=plan("cuda", process=losing("timings", 5)))
    assert len(found["timings"]) == len(CELLS) - 1
    assert found["failed"] == {}
    assert code == FINE


def test_times_as_planned_go_where_the_plan_had_a_kernel_that_is_wrong(module):
    """Nobody knows how fast the plan without it is."""
    module.planned = lambda spec: ("bad", "bad")
    _, found, _ = verified(2.0, 4.0, 1.0, plan=plan("cuda", process=losing("timings", 10)))
    assert [set(row["seconds"]) for row in found["timings"]] == [{"torch"}] * 3
    assert record.winner(found, ("dense", "float32", True), 4, 2, 3) == "torch"


def test_when_time_is_up_what_there_is_is_recorded(module):
    def process(work, todo, *args, **limits):
        for k, found in enumerate(work(todo, *args)):
            if work is timings.run and k == 7:
                raise TimeUpError
            yield found

    code, found, said = verified(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    assert code == FINE
    assert len(found["timings"]) == 1
    assert "timing: the time is over; 1 of 4 sizes are done" in said


def test_checks_that_were_not_done_in_time_pass_nothing(module):
    def process(work, todo, *args, **limits):
        for k, found in enumerate(work(todo, *args)):
            if work is checks.run and k == 8:  # 4 of 8 runs
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
    assert seen == [(checks.run, 7.0), (timings.run, 7.0)]


def test_where_nothing_passed_nothing_is_timed(module):
    module.why_not = lambda spec: "no"
    code, found, _ = verified(2.0, plan=plan("cuda"))
    assert code == FINE
    assert found["timings"] == []
    assert record.winner(found, ("dense", "float32", True), 4, 2, 3) == "torch"


def test_a_process_that_does_not_begin_is_the_backends_fault(module):
    def process(work, *args, **limits):
        raise isolate.LostError("the process ended with code 1")

    code, found, said = verified(2.0, plan=plan("cuda", process=process))
    assert code == WRONG
    assert found["failed"] == {"cuda": {"": {"": ["the process ended with code 1"]}}}
    assert found["passed"] == {}
    assert "cuda: WRONG: the process ended with code 1" in said


def test_a_backend_that_is_not_here_is_named_with_its_reason():
    _, found, said = verified(2.0, 1.0, plan=plan("cuda", "reference"))
    assert "  cuda: not here: " in said
    assert set(found["absent"]) == {"cuda"}


def test_an_earlier_record_keeps_no_kernel_from_being_verified(module, monkeypatch):
    """Else one that was wrong once, by a driver long gone, would stay out for ever."""
    from fastlstm.backends import withheld

    seen = []
    monkeypatch.setattr(dispatch, "why_not", lambda name, spec: seen.append(withheld._instead))
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
from fastlstm.backends import hostsim
from fastlstm.verify import checks, plans, record, run, timings
from fastlstm.verify.cases import SHORT

def work(present):
    table = checks.Table((SHORT[0],), ("float32", "bfloat16"))
    cells = (timings.Cell("dense", "bfloat16", True, 4, 2, 2),)
    return plans.Work(dict.fromkeys(present, table), cells, 300.0, 300.0, 900.0)

if __name__ == "__main__":
    hostsim.library()  # g++ takes a while when it is first built
    device = torch.device("cpu")
    machine = run.Machine(device, "Fake GPU", timings.DeviceClock(device))
    code = run.verify(print, [machine], plans.Plan(("triton", "hostsim"), work))
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
        "triton": {"resident", "streamed", "step"},
        "hostsim": {""},
    }, done.stdout
    assert all(set(row["seconds"]) == {"torch", "triton", "hostsim"} for row in found["timings"])
    assert all(set(row["kernels"]["triton"]) == {"resident", "streamed", "step"} for row in found["timings"])
