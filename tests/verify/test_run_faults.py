"""`fastlstm doctor --verify` where kernels are wrong, crash or hang: who is blamed, and what goes on without them."""

from __future__ import annotations

import pytest
import torch

from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.testing.cases import SHORT
from fastlstm.verify import isolate, record, timings
from fastlstm.verify.run import FINE, WRONG
from tests.verify.verifying import CELLS, losing, plan, verified

CRASH, HANG = "the process ended with code -11", "nothing came for 60 s; it was ended"
pytestmark = pytest.mark.usefixtures("cache")


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
    assert record.wrong_kernels("Fake GPU", "cuda", "float32") == {"bad"}
    assert record.wrong_kernels("Fake GPU", "cuda", "bfloat16") == frozenset()


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
    assert begun == [("correctness", 8), ("correctness", 5), ("timings", 4)]
    assert list(found["failed"]["cuda"]["bad"]) == ["float32"]
    assert len(found["failed"]["cuda"]["bad"]["float32"]) == 1
    assert found["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}, "bad": {"bfloat16": 2}}


def test_a_kernel_that_hung_is_not_tried_in_other_types(module):
    from fastlstm.backends.cuda.status import GaveUpError

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


def test_a_process_that_falls_silent_while_checking_takes_the_kernel_out_in_every_type(module):
    code, found, said = verified(2.0, 1.0, plan=plan("cuda", process=losing("correctness", 1, why=HANG)))
    assert code == WRONG
    assert found["failed"]["cuda"] == {"bad": {"float32": [f"{SHORT[0].id}: {HANG}"]}}
    assert found["unfinished"]["cuda"] == {"bad": {"bfloat16": 2}}
    assert found["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}}
    assert "cuda bad float32: WRONG" in said


def test_a_process_that_crashes_while_checking_takes_the_kernel_out_in_that_type_alone(module):
    code, found, _ = verified(2.0, 1.0, plan=plan("cuda", process=losing("correctness", 1, why=CRASH)))
    assert code == WRONG
    assert found["failed"]["cuda"] == {"bad": {"float32": [f"{SHORT[0].id}: {CRASH}"]}}
    assert found["unfinished"] == {}
    assert found["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}, "bad": {"bfloat16": 2}}


@pytest.mark.parametrize(
    ("turn", "why"), [(1, HANG), (2, CRASH), (8, HANG)]
)  # its first calls, then those that are timed
def test_rows_are_kept_when_a_process_is_lost_while_timing(module, turn, why):
    """In the second cell, with the kernel `bad`."""
    process = losing("timings", 1, "cuda:bad", turn, why)
    code, found, said = verified(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    assert code == WRONG
    assert [row["H"] for row in found["timings"]] == [4, 4, 8]  # H 8 in training is lost, what follows is not
    assert found["failed"]["cuda"] == {"bad": {"float32": [f"timed at dense float32 training H 8 B 2 T 3: {why}"]}}
    assert [list(row["kernels"]["cuda"]) for row in found["timings"]] == [["good", "bad"], ["good"], ["good"]]
    assert all(row["seconds"].keys() == {"torch", "cuda"} for row in found["timings"])
    assert f"timing dense float32 training H 8 B 2 T 3 cuda bad float32: WRONG: {why}" in said


@pytest.mark.parametrize("turn", [1, 4])
def test_a_plan_of_two_kernels_that_takes_the_process_with_it_is_the_fault_of_both(module, turn):
    module.kernel_names = ("good", "bad", "third")
    module.kernels = lambda spec: ("bad", "third")[: 1 + spec.training]
    code, found, _ = verified(2.0, 1.0, 4.0, 3.0, plan=plan("cuda", process=losing("timings", 1, "cuda", turn, HANG)))
    assert code == WRONG
    why = {"float32": [f"timed at dense float32 training H 8 B 2 T 3: {HANG}"]}
    assert found["failed"]["cuda"] == {"bad": why, "third": why}
    assert [set(row["seconds"]) for row in found["timings"]] == [{"torch"}] * 3


def test_a_process_that_is_lost_with_torchs_own_path_is_no_kernels_fault(module):
    code, found, said = verified(2.0, 1.0, 4.0, plan=plan("cuda", process=losing("timings", 0, "torch", 3)))
    assert len(found["timings"]) == len(CELLS) - 1
    assert found["failed"] == {}
    assert code == FINE
    assert f"timing dense float32 training H 4 B 2 T 3 no kernel: WRONG: {CRASH}" in said


@pytest.mark.parametrize(("kernel", "rest"), [("bad", {"torch", "cuda"}), ("good", {"torch"})])
def test_a_kernel_that_gives_up_while_all_take_turns_is_named_and_not_used(module, kernel, rest):
    """In the turn of `bad`, be it that one or, by the error, one whose turn is over."""
    timing, calls = [], []

    def process(work, todo, *args, **limits):
        timing.append(work is timings.run)
        return work(todo, *args)

    def spoil(h, *results):
        calls.extend([1] * timing[-1])
        if len(calls) == 5:
            raise GaveUpError("an earlier call on cuda:0 gave up", kernel, "float32")
        return (h, *results)

    module.spoil = spoil
    code, found, said = verified(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    cell, why = "dense float32 training H 4 B 2 T 3", "GaveUpError: an earlier call on cuda:0 gave up"
    assert code == WRONG
    assert f"timing {cell} cuda {kernel} float32: WRONG: {why}" in said
    assert found["failed"] == {"cuda": {kernel: {"float32": [f"timed at {cell}: {why}"]}}}
    assert "float32" not in found["passed"]["cuda"][kernel]
    assert [set(row["seconds"]) for row in found["timings"]] == [rest] * (len(CELLS) - 1)
    assert not any(kernel in row["kernels"]["cuda"] for row in found["timings"])


def test_times_as_planned_go_where_the_plan_had_a_kernel_that_is_wrong(module):
    """Nobody knows how fast the plan without it is."""
    module.kernels = lambda spec: ("bad", "bad")
    _, found, _ = verified(2.0, 4.0, 1.0, plan=plan("cuda", process=losing("timings", 1, "cuda:bad")))
    assert [set(row["seconds"]) for row in found["timings"]] == [{"torch"}] * 3
    assert record.winner(found, ("dense", "float32", True), 4, 2, 3) == "torch"


def test_a_process_that_does_not_begin_is_the_backends_fault(module):
    def process(work, *args, **limits):
        raise isolate.LostError("the process ended with code 1")

    code, found, said = verified(2.0, plan=plan("cuda", process=process))
    assert code == WRONG
    assert found["failed"] == {"cuda": {"": {"": ["the process ended with code 1"]}}}
    assert found["passed"] == {}
    assert "cuda: WRONG: the process ended with code 1" in said
