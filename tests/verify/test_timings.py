"""Kernels and backends timed beside torch's own path: who takes part, what a row holds, what a fault does."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

import pytest
import torch

from fastlstm import backends, dispatch
from fastlstm.backends import blocklist
from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.verify import timings
from fastlstm.verify.cudnn import SMALL_H, STANDARD
from fastlstm.verify.stages import Started
from fastlstm.verify.timings import Fault, GridPoint
from tests.verify.verifying import Fake, clock

CPU = torch.device("cpu")
CELL = GridPoint("dense", "float32", True, 4, 2, 3)
PASSED = frozenset({("cuda", "one", "float32"), ("cuda", "two", "float32")})


@pytest.fixture
def module(monkeypatch):
    """A backend `cuda` with kernels one and two, that plans `plan` and notes which kernel ran."""
    forced: ContextVar[str] = ContextVar("forced", default="")

    @contextmanager
    def force(kernel):
        token = forced.set(kernel)
        yield
        forced.reset(token)

    def run(direction: int, work):
        def call(self, *args):
            kernel = forced.get() or made.plan[direction]
            made.ran.append((direction, kernel))
            made.spoil(kernel)
            return work(self, *args)

        return call

    class Noting(Fake):
        forward = run(0, Fake.forward)
        backward = run(1, Fake.backward)

    made = Noting(
        kernel_names=("one", "two"),
        force=force,
        kernels=lambda spec: made.plan[: 1 + spec.training],
        plan=("one", "one"),
        ran=[],
        spoil=lambda kernel: None,
    )
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: made if name == "cuda" else load(name))
    return made


def results(cells=(CELL,), passed=PASSED, costs=(2.0, 1.0, 4.0)) -> list:
    return [f for f in timings.run(tuple(cells), passed, CPU, clock(*costs)) if not isinstance(f, Started)]


def test_a_row_has_kernels_and_the_backend_as_planned(module):
    (row,) = results()
    assert row["kernels"] == {"cuda": {"one": 1.0, "two": 4.0}}
    assert row["seconds"] == {"torch": 2.0, "cuda": 1.0}
    assert row["planned"] == {"cuda": ["one", "one"]}
    assert row["cudnn"] == SMALL_H
    assert {k: row[k] for k in ("layout", "math", "training", "H", "B", "T")} == vars(CELL)
    module.plan = ("two", "two")
    assert results()[0]["seconds"]["cuda"] == 4.0


def test_a_forced_kernel_runs_backward_too(module):
    """Autograd has threads of its own for a GPU, which would not know of it."""
    seen = []
    module.spoil = lambda kernel: seen.append(torch.autograd.is_multithreading_enabled())
    results()
    assert {(0, "one"), (1, "one"), (0, "two"), (1, "two")} == set(module.ran)
    backward = [on for (direction, _), on in zip(module.ran, seen, strict=True) if direction == 1]
    assert backward
    assert not any(backward)


def test_a_plan_of_two_kernels_is_timed_by_itself(module):
    module.plan = ("one", "two")
    (row,) = results(costs=(2.0, 1.0, 4.0, 3.0))
    assert row["seconds"] == {"torch": 2.0, "cuda": 3.0}
    assert row["kernels"] == {"cuda": {"one": 1.0, "two": 4.0}}
    (row,) = results([GridPoint("dense", "float32", False, 4, 2, 3)])
    assert row["seconds"] == {"torch": 2.0, "cuda": 1.0}  # forward alone


def test_kernels_that_did_not_pass_do_not_run(module):
    """Nor are they planned: the process knows nothing of the record that is to come."""
    module.spoil = lambda kernel: blocked_seen.append(dict(blocklist.blocked("cuda", 0, "GPU", "float32")))
    blocked_seen: list[dict] = []
    (row,) = results(passed=frozenset({("cuda", "one", "float32")}), costs=(2.0, 1.0))
    assert row["kernels"] == {"cuda": {"one": 1.0}}
    assert {kernel for _, kernel in module.ran} == {"one"}
    assert all(list(seen) == ["two"] for seen in blocked_seen)
    module.plan = ("two", "two")
    (row,) = results(passed=frozenset({("cuda", "one", "float32")}), costs=(2.0, 1.0))
    assert row["seconds"] == {"torch": 2.0}


def test_of_another_type_nothing_runs(module):
    (row,) = results(passed=frozenset({("cuda", "one", "float16")}), costs=(2.0,))
    assert row["kernels"] == {}
    assert module.ran == []


def test_a_kernel_that_cannot_run_a_cell_is_left_out(module):
    module.unsupported_reason = lambda spec: "no" if spec.H == 4 else None
    (row,) = results(costs=(2.0,))
    assert row["seconds"] == {"torch": 2.0}
    assert row["planned"] == {}


def test_what_a_kernel_must_not_do_is_a_fault_and_it_is_not_used_again(module):
    def spoil(kernel):
        if kernel == "two":
            raise ValueError("no such size")

    module.spoil = spoil
    fault, *rows = results([CELL, GridPoint("dense", "float32", True, 8, 2, 3)], costs=(2.0, 1.0))
    assert fault == Fault((("cuda", "two", "float32"),), CELL, "ValueError: no such size", False)
    assert [row["kernels"] for row in rows] == [{"cuda": {"one": 1.0}}] * 2
    assert sum(kernel == "two" for _, kernel in module.ran) == 1


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: unspecified launch failure"), GaveUpError("waited")])
def test_a_fault_that_ruins_the_process_ends_it(module, error):
    def spoil(kernel):
        if kernel == "two":
            raise error

    module.spoil = spoil
    found = list(timings.run((CELL, CELL), PASSED, CPU, clock(2.0)))
    assert found[-1] == Fault((("cuda", "two", "float32"),), CELL, f"{type(error).__name__}: {error}", True)
    assert not any(isinstance(f, dict) for f in found)


def test_the_device_is_asked_after_the_first_calls(module):
    def check(device):
        raise GaveUpError("the blocks of kernel one waited")

    module.check = check
    (fault,) = results()
    assert fault.kernels == (("cuda", "one", "float32"),)
    assert fault.dead


def raising(error: Exception, kernel: str, call: int):
    """What a kernel raises in its call number `call`; forward and backward are two."""
    calls = []

    def spoil(which):
        calls.extend([1] * (which == kernel))
        if which == kernel and len(calls) >= call:
            raise error

    return spoil


FIRST, TIMED = 1, 8  # in the first of two calls that are not timed; in one that is


@pytest.mark.parametrize("call", [FIRST, TIMED])
def test_what_is_raised_in_a_turn_is_a_fault_of_its_kernel_and_the_others_go_on(module, call):
    module.spoil = raising(ValueError("no such size"), "two", call)
    fault, *rows = results([CELL, CELL])
    assert fault == Fault((("cuda", "two", "float32"),), CELL, "ValueError: no such size", False)
    assert [list(row["kernels"]["cuda"]) for row in rows] == [["one"]] * 2
    assert [set(row["seconds"]) for row in rows] == [{"torch", "cuda"}] * 2


@pytest.mark.parametrize("call", [FIRST, TIMED])
def test_a_plan_with_a_kernel_that_failed_has_no_turn_and_its_other_kernel_no_blame(module, call):
    module.plan = ("one", "two")
    module.spoil = raising(ValueError("no such size"), "two", call)
    fault, row = results()
    assert fault.kernels == (("cuda", "two", "float32"),)
    assert set(row["seconds"]) == {"torch"}
    assert list(row["kernels"]["cuda"]) == ["one"]


def test_a_plan_of_two_kernels_that_raises_is_the_fault_of_both(module):
    module.plan = ("one", "two")

    def call(name, kernel, *args):
        if name == "cuda" and not kernel:
            raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timings, "_run", call)
        (fault,) = results()
    assert fault.kernels == (("cuda", "one", "float32"), ("cuda", "two", "float32"))
    assert fault.dead


@pytest.mark.parametrize("call", [FIRST, TIMED])
def test_what_an_earlier_launch_left_is_the_fault_of_the_kernel_that_the_error_names(module, call):
    error = GaveUpError("an earlier call on cuda:0 gave up", "one", "bfloat16")
    module.spoil = raising(error, "two", call)
    (fault,) = results()
    assert fault == Fault((("cuda", "one", "bfloat16"),), CELL, f"GaveUpError: {error}", True)


def test_the_device_is_asked_after_the_last_turn_too(module):
    """Nobody's next call would tell what a kernel left there."""
    asked = []

    def check(device):
        asked.append(module.ran[-1][1])
        if asked.count("two") == 1 + timings.ROUNDS:
            raise GaveUpError("the blocks of kernel two waited")

    module.check = check
    (fault,) = results()
    assert fault.kernels == (("cuda", "two", "float32"),)
    assert asked == ["one", "two"] * (1 + timings.ROUNDS)


def test_the_first_calls_have_ended_before_the_next_contender_begins(module, monkeypatch):
    """Not every backend has a check, and what its kernel does to the device may come out later than its call."""

    class Waits:
        def __init__(self, device):
            pass

        def __call__(self):
            if module.ran and module.ran[-1][1] == "one":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(timings, "DeviceClock", Waits)
    (fault,) = results()
    assert fault.kernels == (("cuda", "one", "float32"),)
    assert fault.dead


@pytest.mark.parametrize("call", [FIRST, TIMED])
def test_too_little_memory_is_no_fault(module, call):
    module.plan = ("one", "two")
    module.spoil = raising(torch.cuda.OutOfMemoryError("out of memory"), "two", call)
    (row,) = results(costs=(2.0, 1.0))
    assert list(row["kernels"]["cuda"]) == ["one"]
    assert set(row["seconds"]) == {"torch"}


def test_torch_without_such_a_kernel_is_left_out(module, monkeypatch):
    def call(lstm, x, training):
        if type(lstm) is torch.nn.LSTM:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(timings, "_call", call)
    (row,) = results(costs=(1.0, 4.0))
    assert row["seconds"] == {"cuda": 1.0}


def test_who_has_its_turn_is_told_with_its_kernels(module):
    """A process that is lost then was lost with it."""
    module.plan = ("one", "two")
    told = [(f.part, f.using) for f in timings.run((CELL,), PASSED, CPU, clock(1.0)) if isinstance(f, Started)]
    one, two = ("cuda", "one", "float32"), ("cuda", "two", "float32")
    turns = [("torch", ()), ("cuda:one", (one,)), ("cuda:two", (two,)), ("cuda", (one, two))]
    assert told == [("", ()), *turns * (1 + timings.ROUNDS), ("", ())]


@pytest.mark.parametrize("layout", ["dense", "packed", "projected"])
@pytest.mark.parametrize("training", [True, False])
def test_a_cell_is_described_as_its_call_is(layout, training, monkeypatch):
    """Plans are asked for this description, and dispatch makes its own from the tensors."""
    cell, seen = GridPoint(layout, "float32", training, 6, 5, 7), []
    monkeypatch.setattr(dispatch, "choose", lambda spec: seen.append(spec) or "reference")
    _, ours, x = timings._modules(cell, CPU)
    timings._run("reference", "", ours, x, training)
    assert seen[0] == timings._spec(cell, CPU)


def test_packed_and_projected_calls_are_timed_too():
    cells = [c for layout in ("packed", "projected") for c in timings.grid(layout, (4,), (3,), (5,), ("float32",))]
    passed = frozenset({("reference", "", "float32")})
    rows = [r for r in timings.run(tuple(cells), passed, CPU, clock(2.0, 1.0)) if isinstance(r, dict)]
    assert [row["seconds"] for row in rows] == [{"torch": 2.0, "reference": 1.0}] * 4
    assert {row["cudnn"] for row in rows} == {STANDARD}
