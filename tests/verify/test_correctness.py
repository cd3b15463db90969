"""The table of cases through kernels: order, draws, faults that end a process, and what a record says to it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastlstm import backends
from fastlstm.backends import blocklist
from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.ops import reference
from fastlstm.ops.arguments import OpInputs
from fastlstm.testing import accuracy
from fastlstm.testing.cases import SHORT, make
from fastlstm.verify import correctness
from fastlstm.verify.correctness import Verdict
from fastlstm.verify.stages import Started

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
CASES = (SHORT[0], SHORT[5])
TABLE = correctness.Table(CASES, ("float32", "bfloat16"))


def outcomes(table: correctness.Table = TABLE) -> list[correctness.Outcome]:
    return [
        result
        for result in correctness.run(correctness.runs("cuda", table), "cuda", CPU)
        if not isinstance(result, Started)
    ]


def test_runs_of_a_case_and_type_follow_each_other(fake_backend):
    """Their reference is computed once."""
    case_runs = correctness.runs(
        "cuda", correctness.Table(CASES, ("float16", "tf32", "float32", "bfloat16"), saves=(1, 2))
    )
    assert len(case_runs) == len(set(case_runs)) == 2 * 4 * 2 * 2
    types_and_cases = [(correctness.MATHS[run.math], run.case) for run in case_runs]
    changes = sum(a != b for a, b in itertools.pairwise(types_and_cases))
    assert changes + 1 == len(set(types_and_cases)) == 3 * 2


def test_a_table_that_names_kernels_runs_only_those(fake_backend):
    assert {run.kernel for run in correctness.runs("cuda", correctness.Table(CASES, kernels=("bad",)))} == {"bad"}


def test_a_case_of_a_right_kernel_is_drawn_once(fake_backend):
    results = outcomes()
    assert len(results) == 8
    assert all(outcome.verdict is Verdict.PASSED and not outcome.reason for outcome in results)
    assert all(len(outcome.ratios) == 1 and 0 < outcome.ratios[0] <= 1 for outcome in results)


def test_a_case_of_a_wrong_kernel_is_drawn_three_times_and_its_errors_are_kept(fake_backend):
    fake_backend.alter_outputs = lambda h, *rest: (h * 1.001, *rest)
    bad = [outcome for outcome in outcomes() if outcome.kernel == "bad" and outcome.math == "float32"]
    assert len(bad) == 2
    for outcome in bad:
        assert outcome.verdict is Verdict.WRONG
        assert "relative error" in outcome.reason
        assert len(outcome.ratios) == correctness.DRAWS
        assert all(ratio > 10 for ratio in outcome.ratios)
        assert not outcome.fatal
    assert all(outcome.verdict is Verdict.PASSED for outcome in outcomes() if outcome.kernel == "good")


def test_one_draw_above_the_allowed_error_is_not_wrong(fake_backend):
    calls = []

    def alter_outputs(h, *rest):
        calls.append(1)
        return (h * 1.001 if len(calls) == 1 else h, *rest)

    fake_backend.alter_outputs = alter_outputs
    (outcome,) = [result for result in outcomes(correctness.Table(CASES[:1], ("float32",))) if result.kernel == "bad"]
    assert outcome.verdict is Verdict.PASSED
    assert outcome.ratios[0] > 1 >= outcome.ratios[1]


def test_nan_is_wrong_after_one_draw(fake_backend):
    fake_backend.alter_outputs = lambda h, *rest: (h * float("nan"), *rest)
    (outcome,) = [result for result in outcomes(correctness.Table(CASES[:1], ("float32",))) if result.kernel == "bad"]
    assert outcome.ratios == (float("inf"),)
    assert outcome.verdict is Verdict.WRONG
    assert "relative error nan" in outcome.reason


def test_a_wrong_shape_is_wrong_without_a_ratio(fake_backend):
    fake_backend.alter_outputs = lambda h, *rest: (h[:-1], *rest)
    wrong = [outcome for outcome in outcomes() if outcome.verdict is Verdict.WRONG]
    assert [outcome.kernel for outcome in wrong] == ["bad"] * 4
    assert all("shape" in outcome.reason for outcome in wrong)
    assert not any(outcome.ratios for outcome in wrong)


@pytest.mark.parametrize(("position", "name"), enumerate(("h", "c", "gates", "h_n", "c_n")))
def test_a_result_of_the_wrong_type_is_wrong_and_named(fake_backend, position, name):
    def alter_outputs(*results):
        return (*results[:position], results[position].double(), *results[position + 1 :])

    fake_backend.alter_outputs = alter_outputs
    wrong = [outcome for outcome in outcomes() if outcome.verdict is not Verdict.PASSED]
    assert [(outcome.kernel, outcome.verdict) for outcome in wrong] == [("bad", Verdict.WRONG)] * 4
    assert all(f" {name}: type torch.float64, expected torch." in outcome.reason for outcome in wrong)


@pytest.mark.parametrize(("position", "name"), [(0, "d_gates"), (2, "dh0"), (3, "dc0")])
def test_a_gradient_of_the_wrong_type_is_wrong_and_named(fake_backend, position, name):
    def backward(inputs, saved, grads):
        out = list(reference.backward(*grads, *inputs, *saved))
        out[position] = out[position].double()
        return tuple(out)

    fake_backend.backward = backward
    assert [outcome.verdict for outcome in outcomes()] == [Verdict.WRONG] * 8
    assert all(f" {name}: type torch.float64, expected torch." in outcome.reason for outcome in outcomes())


@pytest.mark.parametrize("error", [AssertionError(), AssertionError("B >= 1"), RuntimeError(), KeyError("plan")])
def test_an_error_of_any_type_with_or_without_a_text_is_a_failure(fake_backend, error):
    """An `assert` without a text in a kernel's code has none."""

    def alter_outputs(*results):
        raise error

    fake_backend.alter_outputs = alter_outputs
    bad = [outcome for outcome in outcomes() if outcome.kernel == "bad"]
    assert [outcome.verdict for outcome in bad] == [Verdict.FAILED] * 4
    assert all(outcome.reason.startswith(type(error).__name__) for outcome in bad)


@pytest.mark.parametrize("method", ["force", "unsupported_reason"])
def test_a_kernel_that_raises_when_it_is_asked_what_it_takes_has_failed(fake_backend, method):
    right, asked = getattr(fake_backend, method), []

    def raises(argument):
        asked.append(argument)
        if len(asked) == 2:
            raise ZeroDivisionError("no multiprocessors")
        return right(argument)

    setattr(fake_backend, method, raises)
    verdicts = [outcome.verdict for outcome in outcomes()]
    assert verdicts == [Verdict.PASSED, Verdict.FAILED, *[Verdict.PASSED] * 6]


def test_checks_decide_under_python_without_asserts(tmp_path):
    """`python -O` leaves every `assert` out."""
    code = """
import torch
from fastlstm import backends
from fastlstm.ops import reference
from fastlstm.testing.cases import SHORT
from fastlstm.verify import correctness

class Wrong(type(backends.load("reference"))):
    name = "wrong"
    def forward(self, inputs):
        h, *rest = reference.forward(*inputs)
        return (change(h), *rest)

for change in (lambda h: h, lambda h: h * 1.001, lambda h: h.double(), lambda h: h[:-1], lambda h: h * float("nan")):
    run = correctness.CaseRun("", "float32", SHORT[0], 1)
    print(correctness.outcome_of(Wrong(), run, torch.device("cpu")).verdict.value)
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["passed", "wrong", "wrong", "wrong", "wrong"], done.stderr


@pytest.mark.parametrize(
    ("error", "hung"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), False),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False),
        (GaveUpError("an earlier call on cuda:0 gave up"), True),
    ],
)
def test_no_run_follows_a_fatal_error(fake_backend, error, hung):
    def alter_outputs(*outputs):
        raise error

    fake_backend.alter_outputs = alter_outputs
    results = outcomes()
    assert [outcome.kernel for outcome in results] == ["good", "bad"]
    assert results[-1].fatal
    assert results[-1].hung is hung
    assert results[-1].verdict is Verdict.FAILED
    assert results[-1].reason == f"{type(error).__name__}: {str(error).splitlines()[0]}"


def test_a_device_is_asked_after_an_error_that_does_not_say_that_it_failed(monkeypatch):
    """cuDNN, say, names its own status."""
    waited = []

    def synchronize(device):
        waited.append(device)
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    gpu, triton = torch.device("cuda", 0), backends.load("triton")
    for error in (correctness.pending_error(gpu), correctness.pending_error(gpu, triton)):
        assert correctness.is_fatal(error)
    assert waited == [gpu, gpu]
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert correctness.pending_error(gpu, triton) is None
    assert waited == [gpu] * 4
    assert correctness.pending_error(CPU, triton) is None


def test_the_runs_go_on_after_an_error_that_is_not_fatal(fake_backend):
    class CompilationError(Exception):
        pass

    def alter_outputs(*outputs):
        raise CompilationError("at 3:4")

    fake_backend.alter_outputs = alter_outputs
    results = outcomes()
    assert len(results) == 8
    assert [outcome.reason for outcome in results if outcome.kernel == "bad"] == ["CompilationError: at 3:4"] * 4
    assert not any(outcome.fatal for outcome in results)


def test_the_device_is_checked_after_each_draw(fake_backend):
    """An error that a kernel left for the next call belongs to this run."""
    checked = []

    def check(device):
        checked.append(device)
        raise GaveUpError("the blocks of kernel bad waited")

    fake_backend.check = check
    results = outcomes()
    assert checked == [CPU]
    assert results[-1].hung


def test_a_kernel_that_does_not_take_a_case_is_skipped(fake_backend):
    fake_backend.unsupported_reason = lambda spec: "no"
    results = outcomes()
    assert len(results) == 8
    assert {(outcome.verdict, outcome.reason) for outcome in results} == {(Verdict.SKIPPED, "no")}


def test_an_earlier_record_blocks_no_kernel_during_the_runs(fake_backend, monkeypatch):
    monkeypatch.setattr("fastlstm.verify.record.wrong_kernels", lambda *of: frozenset({"good"}))
    blocked = []
    fake_backend.alter_outputs = lambda *outputs: (
        blocked.append(blocklist.blocked("cuda", 0, "GPU", "float32")) or outputs
    )
    outcomes(correctness.Table(CASES[:1], ("float32",)))
    assert blocked == [{}]
    assert "good" in blocklist.blocked("cuda", 0, "GPU", "float32")


@pytest.mark.parametrize("case", [*SHORT, *correctness.LARGE], ids=str)
def test_the_spec_of_a_case_is_the_spec_of_its_tensors(case):
    inputs = OpInputs(*make(case, torch.bfloat16), case.reverse, 2)
    assert correctness._spec(case, torch.bfloat16, 2, CPU) == inputs.spec()


def test_cases_of_many_steps_or_none_are_drawn_once():
    assert [len(accuracy.draws(case)) for case in correctness.LONG] == [1]
    assert {len(accuracy.draws(case)) for case in SHORT if case.B == 0} == {1}
    assert max(len(accuracy.draws(case)) for case in SHORT) == 16


def test_tf32_has_an_eps_of_its_own():
    ref = torch.ones(100, dtype=torch.float64)
    accuracy.check("x", ref * 1.003, ref, ref.float(), tf32=True)
    with pytest.raises(AssertionError):
        accuracy.check("x", ref * 1.005, ref, ref.float(), tf32=True)
    with pytest.raises(AssertionError):
        accuracy.check("x", ref * 1.003, ref, ref.float())


def test_tf32_is_set_and_restored():
    before = torch.backends.cudnn.allow_tf32
    with correctness.tf32(not before):
        assert torch.backends.cudnn.allow_tf32 is not before
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("raised", [RuntimeError("no memory for partial sums"), AssertionError("h has shape [3]")])
@pytest.mark.parametrize("pending", [GaveUpError("bad gave up"), RuntimeError("CUDA error: illegal memory access")])
def test_an_error_pending_after_a_failed_run_belongs_to_that_run(fake_backend, raised, pending):
    """A kernel that raises before anyone asks the device may have left a status word, or a failed device, for the next call."""
    pending_errors = []

    def alter_outputs(*outputs):
        pending_errors.append(pending)
        raise raised

    def check(device):
        if pending_errors:
            raise pending_errors.pop()

    fake_backend.alter_outputs, fake_backend.check = alter_outputs, check
    results = outcomes()
    assert (results[-1].kernel, results[-1].fatal, results[-1].hung) == ("bad", True, isinstance(pending, GaveUpError))
    assert results[-1].verdict is Verdict.FAILED
    assert str(raised) in results[-1].reason
    assert not pending_errors
    assert all(outcome.verdict is Verdict.PASSED for outcome in results if outcome.kernel == "good")
