"""Kernels and backends timed beside torch's own path: who takes part, what a row holds, what a fault does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastlstm import backends, dispatch
from fastlstm.backends import blocklist
from fastlstm.backends.base import forced_kernels
from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.verify import timings
from fastlstm.verify.cudnn import SMALL_H, STANDARD
from fastlstm.verify.stages import Started
from fastlstm.verify.timings import Fault, TimingPoint
from tests.verify.fakes import FakeBackend, fake_clock

CPU = torch.device("cpu")
POINT = TimingPoint("dense", "float32", True, 4, 2, 3)
PASSED = frozenset({("cuda", "one", "float32"), ("cuda", "two", "float32")})


@pytest.fixture
def fake_backend(monkeypatch):
    """A backend `cuda` with kernels one and two, that plans `plan` and records which kernel ran."""

    def run(direction: int, work):
        def call(self, *args):
            kernel = forced_kernels.get().get("cuda") or backend.plan[direction]
            backend.ran.append((direction, kernel))
            backend.before_call(kernel)
            return work(self, *args)

        return call

    class RecordingBackend(FakeBackend):
        forward = run(0, FakeBackend.forward)
        backward = run(1, FakeBackend.backward)

    backend = RecordingBackend(
        kernel_names=("one", "two"),
        kernels=lambda spec: backend.plan[: 1 + spec.training],
        plan=("one", "one"),
        ran=[],
        before_call=lambda kernel: None,
    )
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: backend if name == "cuda" else load(name))
    return backend


def timing_results(points=(POINT,), passed=PASSED, costs=(2.0, 1.0, 4.0)) -> list:
    return [
        item for item in timings.run(tuple(points), passed, CPU, fake_clock(*costs)) if not isinstance(item, Started)
    ]


def test_a_row_has_the_seconds_of_each_kernel_and_of_the_backend_as_planned(fake_backend):
    (row,) = timing_results()
    assert row["kernels"] == {"cuda": {"one": 1.0, "two": 4.0}}
    assert row["seconds"] == {"torch": 2.0, "cuda": 1.0}
    assert row["planned"] == {"cuda": ["one", "one"]}
    assert row["cudnn"] == SMALL_H
    assert {k: row[k] for k in ("layout", "math", "training", "H", "B", "T")} == vars(POINT)
    fake_backend.plan = ("two", "two")
    assert timing_results()[0]["seconds"]["cuda"] == 4.0


def test_a_forced_kernel_runs_backward_too_in_autograds_own_thread(fake_backend, monkeypatch):
    """For a GPU autograd has threads of its own, in which nothing is forced."""
    grad = torch.autograd.grad

    def in_a_thread(*args):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(grad, *args).result()

    monkeypatch.setattr(torch.autograd, "grad", in_a_thread)
    timing_results()
    calls = list(zip(fake_backend.ran[::2], fake_backend.ran[1::2], strict=True))
    assert set(calls) == {((0, "one"), (1, "one")), ((0, "two"), (1, "two"))}


def test_a_plan_of_two_kernels_is_timed_beside_each_of_them(fake_backend):
    fake_backend.plan = ("one", "two")
    (row,) = timing_results(costs=(2.0, 1.0, 4.0, 3.0))
    assert row["seconds"] == {"torch": 2.0, "cuda": 3.0}
    assert row["kernels"] == {"cuda": {"one": 1.0, "two": 4.0}}
    (row,) = timing_results([TimingPoint("dense", "float32", False, 4, 2, 3)])
    assert row["seconds"] == {"torch": 2.0, "cuda": 1.0}  # forward alone


def test_kernels_that_did_not_pass_are_neither_run_nor_planned(fake_backend):
    """The process knows nothing of the record that is to come."""
    fake_backend.before_call = lambda kernel: blocked.append(dict(blocklist.blocked("cuda", 0, "GPU", "float32")))
    blocked: list[dict] = []
    (row,) = timing_results(passed=frozenset({("cuda", "one", "float32")}), costs=(2.0, 1.0))
    assert row["kernels"] == {"cuda": {"one": 1.0}}
    assert {kernel for _, kernel in fake_backend.ran} == {"one"}
    assert all(list(reasons) == ["two"] for reasons in blocked)
    fake_backend.plan = ("two", "two")
    (row,) = timing_results(passed=frozenset({("cuda", "one", "float32")}), costs=(2.0, 1.0))
    assert row["seconds"] == {"torch": 2.0}


def test_a_kernel_that_passed_in_another_type_does_not_run(fake_backend):
    (row,) = timing_results(passed=frozenset({("cuda", "one", "float16")}), costs=(2.0,))
    assert row["kernels"] == {}
    assert fake_backend.ran == []


def test_a_kernel_that_cannot_run_a_point_is_left_out(fake_backend):
    fake_backend.unsupported_reason = lambda spec: "no" if spec.H == 4 else None
    (row,) = timing_results(costs=(2.0,))
    assert row["seconds"] == {"torch": 2.0}
    assert row["planned"] == {}


@pytest.mark.parametrize(("kernel", "others"), [("two", ["one"]), ("", [])])
def test_a_kernel_that_raises_when_it_is_asked_what_it_takes_is_a_fault(fake_backend, kernel, others):
    """Where the plan for a backend raises, it is not known which kernel is at fault."""

    def unsupported_reason(spec):
        if forced_kernels.get()["cuda"] == kernel:
            raise ZeroDivisionError("no multiprocessors")

    fake_backend.unsupported_reason = unsupported_reason
    fault, *rows = timing_results([POINT, POINT], costs=(2.0, 1.0))
    wrong = tuple(("cuda", name, "float32") for name in ("one", "two") if name not in others)
    assert fault == Fault(wrong, POINT, "ZeroDivisionError: no multiprocessors", False)
    assert [list(row["kernels"].get("cuda", ())) for row in rows] == [others] * 2


def test_a_kernel_that_raises_is_a_fault_and_is_not_used_again(fake_backend):
    def before_call(kernel):
        if kernel == "two":
            raise ValueError("no such size")

    fake_backend.before_call = before_call
    fault, *rows = timing_results([POINT, TimingPoint("dense", "float32", True, 8, 2, 3)], costs=(2.0, 1.0))
    assert fault == Fault((("cuda", "two", "float32"),), POINT, "ValueError: no such size", False)
    assert [row["kernels"] for row in rows] == [{"cuda": {"one": 1.0}}] * 2
    assert sum(kernel == "two" for _, kernel in fake_backend.ran) == 1


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: unspecified launch failure"), GaveUpError("waited")])
def test_nothing_is_timed_after_a_fatal_fault(fake_backend, error):
    def before_call(kernel):
        if kernel == "two":
            raise error

    fake_backend.before_call = before_call
    results = list(timings.run((POINT, POINT), PASSED, CPU, fake_clock(2.0)))
    assert results[-1] == Fault((("cuda", "two", "float32"),), POINT, f"{type(error).__name__}: {error}", True)
    assert not any(isinstance(item, dict) for item in results)


def test_the_device_is_checked_after_the_first_calls(fake_backend):
    def check(device):
        raise GaveUpError("the blocks of kernel one waited")

    fake_backend.check = check
    (fault,) = timing_results()
    assert fault.kernels == (("cuda", "one", "float32"),)
    assert fault.fatal


def raise_in_call(error: Exception, kernel: str, call: int):
    """What a kernel raises in its call number `call`; forward and backward are two."""
    calls = []

    def before_call(running):
        calls.extend([1] * (running == kernel))
        if running == kernel and len(calls) >= call:
            raise error

    return before_call


FIRST, TIMED = 1, 8  # in the first of two calls that are not timed; in one that is


@pytest.mark.parametrize("call", [FIRST, TIMED])
def test_an_error_in_a_turn_is_a_fault_of_its_kernel_and_the_others_go_on(fake_backend, call):
    fake_backend.before_call = raise_in_call(ValueError("no such size"), "two", call)
    fault, *rows = timing_results([POINT, POINT])
    assert fault == Fault((("cuda", "two", "float32"),), POINT, "ValueError: no such size", False)
    assert [list(row["kernels"]["cuda"]) for row in rows] == [["one"]] * 2
    assert [set(row["seconds"]) for row in rows] == [{"torch", "cuda"}] * 2


@pytest.mark.parametrize("call", [FIRST, TIMED])
def test_a_plan_with_a_failed_kernel_is_not_timed_and_its_other_kernel_is_not_at_fault(fake_backend, call):
    fake_backend.plan = ("one", "two")
    fake_backend.before_call = raise_in_call(ValueError("no such size"), "two", call)
    fault, row = timing_results()
    assert fault.kernels == (("cuda", "two", "float32"),)
    assert set(row["seconds"]) == {"torch"}
    assert list(row["kernels"]["cuda"]) == ["one"]


def test_an_error_of_a_plan_of_two_kernels_is_the_fault_of_both(fake_backend):
    fake_backend.plan = ("one", "two")

    def call(name, kernel, *args):
        if name == "cuda" and not kernel:
            raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timings, "_run", call)
        (fault,) = timing_results()
    assert fault.kernels == (("cuda", "one", "float32"), ("cuda", "two", "float32"))
    assert fault.fatal


@pytest.mark.parametrize("call", [FIRST, TIMED])
def test_an_error_of_an_earlier_launch_is_the_fault_of_the_kernel_it_names(fake_backend, call):
    error = GaveUpError("an earlier call on cuda:0 gave up", "one", "bfloat16")
    fake_backend.before_call = raise_in_call(error, "two", call)
    (fault,) = timing_results()
    assert fault == Fault((("cuda", "one", "bfloat16"),), POINT, f"GaveUpError: {error}", True)


def test_the_device_is_checked_after_every_turn_the_last_one_too(fake_backend):
    """No later call would report an error that the last kernel left there."""
    checked = []

    def check(device):
        checked.append(fake_backend.ran[-1][1])
        if checked.count("two") == 1 + timings.ROUNDS:
            raise GaveUpError("the blocks of kernel two waited")

    fake_backend.check = check
    (fault,) = timing_results()
    assert fault.kernels == (("cuda", "two", "float32"),)
    assert checked == ["one", "two"] * (1 + timings.ROUNDS)


def test_the_device_is_waited_for_before_the_next_contender_begins(fake_backend, monkeypatch):
    """Not every backend has a check, and what its kernel does to the device may come out later than its call."""

    class FailingClock:
        def __init__(self, device):
            pass

        def __call__(self):
            if fake_backend.ran and fake_backend.ran[-1][1] == "one":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(timings, "DeviceClock", FailingClock)
    (fault,) = timing_results()
    assert fault.kernels == (("cuda", "one", "float32"),)
    assert fault.fatal


@pytest.mark.parametrize("call", [FIRST, TIMED])
def test_running_out_of_memory_is_no_fault(fake_backend, call):
    fake_backend.plan = ("one", "two")
    fake_backend.before_call = raise_in_call(torch.cuda.OutOfMemoryError("out of memory"), "two", call)
    (row,) = timing_results(costs=(2.0, 1.0))
    assert list(row["kernels"]["cuda"]) == ["one"]
    assert set(row["seconds"]) == {"torch"}


def test_torch_has_no_time_where_cudnn_does_not_support_the_call(fake_backend, monkeypatch):
    def call(lstm, x, training):
        if type(lstm) is torch.nn.LSTM:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(timings, "_call", call)
    (row,) = timing_results(costs=(1.0, 4.0))
    assert row["seconds"] == {"cuda": 1.0}


def test_each_turn_is_announced_with_its_kernels(fake_backend):
    """A process that fails then failed in that turn."""
    fake_backend.plan = ("one", "two")
    started = [
        (item.part, item.using)
        for item in timings.run((POINT,), PASSED, CPU, fake_clock(1.0))
        if isinstance(item, Started)
    ]
    one, two = ("cuda", "one", "float32"), ("cuda", "two", "float32")
    turns = [("torch", ()), ("cuda:one", (one,)), ("cuda:two", (two,)), ("cuda", (one, two))]
    assert started == [("", ()), *turns * (1 + timings.ROUNDS), ("", ())]


@pytest.mark.parametrize("layout", ["dense", "packed", "projected"])
@pytest.mark.parametrize("training", [True, False])
def test_the_spec_of_a_point_is_the_spec_of_its_call(layout, training, monkeypatch):
    """Plans are asked for this description, and dispatch makes its own from the tensors."""
    point, specs = TimingPoint(layout, "float32", training, 6, 5, 7), []
    monkeypatch.setattr(dispatch, "choose", lambda spec: specs.append(spec) or "reference")
    _, lstm, x = timings._modules(point, CPU)
    timings._run("reference", "", lstm, x, training)
    assert specs[0] == timings._spec(point, CPU)


def test_packed_and_projected_calls_are_timed_too():
    points = [c for layout in ("packed", "projected") for c in timings.grid(layout, (4,), (3,), (5,), ("float32",))]
    passed = frozenset({("reference", "", "float32")})
    rows = [r for r in timings.run(tuple(points), passed, CPU, fake_clock(2.0, 1.0)) if isinstance(r, dict)]
    assert [row["seconds"] for row in rows] == [{"torch": 2.0, "reference": 1.0}] * 4
    assert {row["cudnn"] for row in rows} == {STANDARD}
