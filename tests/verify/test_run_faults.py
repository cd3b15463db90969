"""`fastlstm doctor --verify` where kernels are wrong, crash or hang: which kernel is at fault, and what goes on without it."""

from __future__ import annotations

import pytest
import torch

from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.testing.cases import SHORT
from fastlstm.verify import isolate, record, timings
from fastlstm.verify.run import FAILED, PASSED
from tests.verify.fakes import POINTS, failing_process, plan, run_verify

CRASH, HANG = "the process ended with code -11", "nothing came for 60 s; it was ended"
pytestmark = pytest.mark.usefixtures("cache")


def test_a_wrong_kernel_fails_in_its_type_alone(fake_backend):
    fake_backend.alter_outputs = lambda h, *rest: (h * 1.001 if h.dtype == torch.float32 else h, *rest)
    code, recorded, output = run_verify(2.0, 1.0, plan=plan("cuda"))
    assert code == FAILED
    assert "cuda bad float32: WRONG: " in output
    assert "relative error" in output
    assert list(recorded["failed"]["cuda"]) == ["bad"]
    assert list(recorded["failed"]["cuda"]["bad"]) == ["float32"]
    assert len(recorded["failed"]["cuda"]["bad"]["float32"]) == 2  # the other case was run as well
    assert recorded["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}, "bad": {"bfloat16": 2}}
    assert recorded["ratios"]["cuda"]["bad"]["float32"] > 10
    assert [len(drawn["ratios"]) for drawn in recorded["redrawn"]] == [3, 3]
    assert [row["kernels"] for row in recorded["timings"]] == [{"cuda": {"good": 1.0}}] * len(POINTS)
    assert record.wrong_kernels("Fake GPU", "cuda", "float32") == {"bad"}
    assert record.wrong_kernels("Fake GPU", "cuda", "bfloat16") == frozenset()


def test_after_a_device_error_only_that_kernel_and_type_are_skipped(fake_backend):
    """The process ends after it; in this test the fresh one is this one again."""

    def alter_outputs(h, *rest):
        if h.dtype == torch.float32:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return (h, *rest)

    fake_backend.alter_outputs = alter_outputs
    started = []

    def process(work, items, *args, **limits):
        started.append((work.__module__.split(".")[-1], len(items)))
        return work(items, *args)

    _, recorded, _ = run_verify(2.0, 1.0, plan=plan("cuda", process=process))
    # 8 runs; the second is the fault, after it the other case of that kernel and type is not tried
    assert started == [("correctness", 8), ("correctness", 5), ("timings", 4)]
    assert list(recorded["failed"]["cuda"]["bad"]) == ["float32"]
    assert len(recorded["failed"]["cuda"]["bad"]["float32"]) == 1
    assert recorded["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}, "bad": {"bfloat16": 2}}


def test_a_kernel_that_hung_is_not_tried_in_other_types(fake_backend):
    dtypes = []

    def alter_outputs(h, *rest):
        dtypes.append(h.dtype)
        raise GaveUpError("an earlier call on cuda:0 gave up")

    fake_backend.alter_outputs = alter_outputs
    _, recorded, output = run_verify(2.0, 1.0, plan=plan("cuda"))
    assert len(dtypes) == 1
    assert list(recorded["failed"]["cuda"]["bad"]) == ["float32"]
    assert recorded["unfinished"] == {"cuda": {"bad": {"bfloat16": 2}}}
    assert "cuda bad bfloat16: not used, since 2 of its checks were not done" in output
    assert recorded["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}}


def test_a_kernel_whose_check_times_out_is_not_checked_in_other_types(fake_backend):
    code, recorded, output = run_verify(
        2.0, 1.0, plan=plan("cuda", process=failing_process("correctness", 1, reason=HANG))
    )
    assert code == FAILED
    assert recorded["failed"]["cuda"] == {"bad": {"float32": [f"{SHORT[0].id}: {HANG}"]}}
    assert recorded["unfinished"]["cuda"] == {"bad": {"bfloat16": 2}}
    assert recorded["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}}
    assert "cuda bad float32: FAILED: " in output


def test_a_kernel_whose_check_crashes_fails_in_that_type_alone(fake_backend):
    code, recorded, _ = run_verify(2.0, 1.0, plan=plan("cuda", process=failing_process("correctness", 1, reason=CRASH)))
    assert code == FAILED
    assert recorded["failed"]["cuda"] == {"bad": {"float32": [f"{SHORT[0].id}: {CRASH}"]}}
    assert recorded["unfinished"] == {}
    assert recorded["passed"]["cuda"] == {"good": {"float32": 2, "bfloat16": 2}, "bad": {"bfloat16": 2}}


@pytest.mark.parametrize(
    ("turn", "reason"), [(1, HANG), (2, CRASH), (8, HANG)]
)  # its first calls, then those that are timed
def test_rows_are_kept_when_a_process_fails_while_timing(fake_backend, turn, reason):
    """At the second point, with the kernel `bad`."""
    process = failing_process("timings", 1, "cuda:bad", turn, reason)
    code, recorded, output = run_verify(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    assert code == FAILED
    assert [row["H"] for row in recorded["timings"]] == [4, 4, 8]  # H 8 in training has no row, what follows has one
    assert recorded["failed"]["cuda"] == {
        "bad": {"float32": [f"timed at dense float32 training H 8 B 2 T 3: {reason}"]}
    }
    assert [list(row["kernels"]["cuda"]) for row in recorded["timings"]] == [["good", "bad"], ["good"], ["good"]]
    assert all(row["seconds"].keys() == {"torch", "cuda"} for row in recorded["timings"])
    assert f"timing dense float32 training H 8 B 2 T 3 cuda bad float32: FAILED: {reason}" in output


@pytest.mark.parametrize("turn", [1, 4])
def test_a_process_failure_under_a_plan_of_two_kernels_fails_both(fake_backend, turn):
    fake_backend.kernel_names = ("good", "bad", "third")
    fake_backend.kernels = lambda spec: ("bad", "third")[: 1 + spec.training]
    code, recorded, _ = run_verify(
        2.0, 1.0, 4.0, 3.0, plan=plan("cuda", process=failing_process("timings", 1, "cuda", turn, HANG))
    )
    assert code == FAILED
    reason = {"float32": [f"timed at dense float32 training H 8 B 2 T 3: {HANG}"]}
    assert recorded["failed"]["cuda"] == {"bad": reason, "third": reason}
    assert [set(row["seconds"]) for row in recorded["timings"]] == [{"torch"}] * 3


def test_a_process_failure_in_torchs_own_path_fails_no_kernel(fake_backend):
    code, recorded, output = run_verify(
        2.0, 1.0, 4.0, plan=plan("cuda", process=failing_process("timings", 0, "torch", 3))
    )
    assert len(recorded["timings"]) == len(POINTS) - 1
    assert recorded["failed"] == {}
    assert code == PASSED
    assert f"timing dense float32 training H 4 B 2 T 3 no kernel: FAILED: {CRASH}" in output


@pytest.mark.parametrize(("kernel", "rest"), [("bad", {"torch", "cuda"}), ("good", {"torch"})])
def test_the_kernel_that_a_gave_up_error_names_fails_and_is_not_used_again(fake_backend, kernel, rest):
    """In the turn of `bad`, be it that one or, by the error, one whose turn is over."""
    timing, calls = [], []

    def process(work, items, *args, **limits):
        timing.append(work is timings.run)
        return work(items, *args)

    def alter_outputs(h, *results):
        calls.extend([1] * timing[-1])
        if len(calls) == 5:
            raise GaveUpError("an earlier call on cuda:0 gave up", kernel, "float32")
        return (h, *results)

    fake_backend.alter_outputs = alter_outputs
    code, recorded, output = run_verify(2.0, 1.0, 4.0, plan=plan("cuda", process=process))
    point, reason = "dense float32 training H 4 B 2 T 3", "GaveUpError: an earlier call on cuda:0 gave up"
    assert code == FAILED
    assert f"timing {point} cuda {kernel} float32: FAILED: {reason}" in output
    assert recorded["failed"] == {"cuda": {kernel: {"float32": [f"timed at {point}: {reason}"]}}}
    assert "float32" not in recorded["passed"]["cuda"][kernel]
    assert [set(row["seconds"]) for row in recorded["timings"]] == [rest] * (len(POINTS) - 1)
    assert not any(kernel in row["kernels"]["cuda"] for row in recorded["timings"])


def test_times_as_planned_are_dropped_where_a_planned_kernel_failed(fake_backend):
    """Nobody knows how fast the plan without it is."""
    fake_backend.kernels = lambda spec: ("bad", "bad")
    _, recorded, _ = run_verify(2.0, 4.0, 1.0, plan=plan("cuda", process=failing_process("timings", 1, "cuda:bad")))
    assert [set(row["seconds"]) for row in recorded["timings"]] == [{"torch"}] * 3
    assert record.winner(recorded, ("dense", "float32", True), 4, 2, 3) == "torch"


def test_a_process_that_fails_before_the_first_run_is_a_failure_of_the_backend(fake_backend):
    def process(work, *args, **limits):
        raise isolate.ProcessFailedError("the process ended with code 1")

    code, recorded, output = run_verify(2.0, plan=plan("cuda", process=process))
    assert code == FAILED
    assert recorded["failed"] == {"cuda": {"": {"": ["the process ended with code 1"]}}}
    assert recorded["passed"] == {}
    assert "cuda: FAILED: the process ended with code 1" in output
