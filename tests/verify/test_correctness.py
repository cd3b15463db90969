"""The table of cases through kernels: order, draws, faults that end a process, and what a record says to it."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastlstm.backends import blocklist
from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.ops.arguments import OpInputs
from fastlstm.testing import accuracy
from fastlstm.testing.cases import SHORT, make
from fastlstm.verify import correctness
from fastlstm.verify.stages import Started

CPU = torch.device("cpu")
CASES = (SHORT[0], SHORT[5])
TABLE = correctness.Table(CASES, ("float32", "bfloat16"))


def outcomes(table: correctness.Table = TABLE) -> list[correctness.Outcome]:
    return [f for f in correctness.run(correctness.runs("cuda", table), "cuda", CPU) if not isinstance(f, Started)]


def test_all_kernels_of_a_case_and_type_are_side_by_side(module):
    """Their reference is computed once."""
    runs = correctness.runs("cuda", correctness.Table(CASES, ("float16", "tf32", "float32", "bfloat16"), saves=(1, 2)))
    assert len(runs) == len(set(runs)) == 2 * 4 * 2 * 2
    seen = [(correctness.MATHS[run.math], run.case) for run in runs]
    changes = sum(a != b for a, b in itertools.pairwise(seen))
    assert changes + 1 == len(set(seen)) == 3 * 2


def test_a_table_may_name_its_kernels(module):
    assert {run.kernel for run in correctness.runs("cuda", correctness.Table(CASES, kernels=("bad",)))} == {"bad"}


def test_a_right_kernel_is_drawn_once(module):
    found = outcomes()
    assert len(found) == 8
    assert all(not f.wrong and len(f.ratios) == 1 and 0 < f.ratios[0] <= 1 for f in found)


def test_a_wrong_kernel_is_drawn_three_times_and_its_errors_are_kept(module):
    module.spoil = lambda *found: (found[0] * 1.001, *found[1:])
    bad = [f for f in outcomes() if f.kernel == "bad" and f.math == "float32"]
    assert len(bad) == 2
    for outcome in bad:
        assert "relative error" in outcome.wrong
        assert len(outcome.ratios) == correctness.DRAWS
        assert all(ratio > 10 for ratio in outcome.ratios)
        assert not outcome.dead
    assert not any(f.wrong for f in outcomes() if f.kernel == "good")


def test_one_unlucky_draw_is_not_wrong(module):
    calls = []

    def spoil(*found):
        calls.append(1)
        return (found[0] * 1.001, *found[1:]) if len(calls) == 1 else found

    module.spoil = spoil
    (found,) = [f for f in outcomes(correctness.Table(CASES[:1], ("float32",))) if f.kernel == "bad"]
    assert not found.wrong
    assert found.ratios[0] > 1 >= found.ratios[1]


def test_nan_is_no_matter_of_luck(module):
    module.spoil = lambda *found: (found[0] * float("nan"), *found[1:])
    (found,) = [f for f in outcomes(correctness.Table(CASES[:1], ("float32",))) if f.kernel == "bad"]
    assert found.ratios == (float("inf"),)
    assert "relative error nan" in found.wrong


def test_a_wrong_shape_is_wrong_at_once(module):
    module.spoil = lambda *found: (found[0][:-1], *found[1:])
    wrong = [f for f in outcomes() if f.wrong]
    assert {f.kernel for f in wrong} == {"bad"}
    assert not any(f.ratios for f in wrong)


@pytest.mark.parametrize(
    ("error", "hung"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), False),
        (GaveUpError("an earlier call on cuda:0 gave up"), True),
    ],
)
def test_what_ruins_the_process_ends_it(module, error, hung):
    def spoil(*found):
        raise error

    module.spoil = spoil
    found = outcomes()
    assert [f.kernel for f in found] == ["good", "bad"]
    assert found[-1].dead
    assert found[-1].hung is hung
    assert found[-1].wrong == f"{type(error).__name__}: {str(error).splitlines()[0]}"


def test_other_errors_are_wrong_and_it_goes_on(module):
    class CompilationError(Exception):
        pass

    def spoil(*found):
        raise CompilationError("at 3:4")

    module.spoil = spoil
    found = outcomes()
    assert len(found) == 8
    assert [f.wrong for f in found if f.kernel == "bad"] == ["CompilationError: at 3:4"] * 4
    assert not any(f.dead for f in found)


def test_the_device_is_asked_after_each_draw(module):
    """What a kernel left for the next call belongs to this run."""
    asked = []

    def check(device):
        asked.append(device)
        raise GaveUpError("the blocks of kernel bad waited")

    module.check = check
    found = outcomes()
    assert asked == [CPU]
    assert found[-1].hung


def test_a_kernel_that_does_not_take_a_case_is_skipped(module):
    module.unsupported_reason = lambda spec: "no"
    found = outcomes()
    assert len(found) == 8
    assert {outcome.skipped for outcome in found} == {"no"}


def test_an_earlier_record_does_not_count(module, monkeypatch):
    monkeypatch.setattr("fastlstm.verify.record.wrong_kernels", lambda *of: frozenset({"good"}))
    seen = []
    module.spoil = lambda *found: seen.append(blocklist.blocked("cuda", 0, "GPU", "float32")) or found
    outcomes(correctness.Table(CASES[:1], ("float32",)))
    assert seen == [{}]
    assert "good" in blocklist.blocked("cuda", 0, "GPU", "float32")


@pytest.mark.parametrize("case", [*SHORT, *correctness.LARGE], ids=str)
def test_a_case_is_described_as_its_tensors_are(case):
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
@pytest.mark.parametrize("left", [GaveUpError("bad gave up"), RuntimeError("CUDA error: illegal memory access")])
def test_what_a_failed_run_left_is_its_own(module, raised, left):
    """A kernel that raises before anyone asks the device may have left a word, or a ruined device, for the next call."""
    words = []

    def spoil(*found):
        words.append(left)
        raise raised

    def check(device):
        if words:
            raise words.pop()

    module.spoil, module.check = spoil, check
    found = outcomes()
    assert (found[-1].kernel, found[-1].dead, found[-1].hung) == ("bad", True, isinstance(left, GaveUpError))
    assert str(raised) in found[-1].wrong
    assert not words
    assert not any(one.wrong for one in found if one.kernel == "good")
