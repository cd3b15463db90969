"""What a verification runs by default and in full, what that takes by count, and what Triton compiles for it."""

from __future__ import annotations

from dataclasses import replace
from importlib import util

import pytest
import torch

from fastlstm.backends import blocklist, load
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from fastlstm.testing.cases import make, make_grads
from fastlstm.verify import correctness, plans, timings
from fastlstm.verify.plans import LIMIT, full, quick

CPU = torch.device("cpu")
PRESENT = [("cuda",), ("cuda", "triton"), ("triton",)]


@pytest.mark.parametrize("present", PRESENT)
def test_the_default_fits_its_limit_with_a_third_to_spare_and_the_limit_three_minutes(present):
    work = quick(present)
    assert plans.estimate(work) < LIMIT * 0.75
    assert work.whole == LIMIT < 180
    assert work.checking < work.whole
    assert work.left_out


@pytest.mark.parametrize(
    ("present", "minutes"), [(("cuda",), (10, 25)), (("cuda", "triton"), (30, 60)), (("triton",), (20, 40))]
)
def test_the_whole_takes_as_long_as_the_help_says(present, minutes):
    work = full(present)
    assert minutes[0] < plans.estimate(work) / 60 < minutes[1]
    assert set(work.tables) == set(present)
    assert correctness.LONG[0] in work.tables[present[0]].cases
    assert not work.left_out


def test_by_default_triton_waits_for_the_cuda_kernels():
    assert set(quick(("cuda", "triton")).tables) == {"cuda"}
    assert quick(("triton",)).tables["triton"].kernels == ("single_block",)
    assert quick(()).tables == {}


def test_the_default_checks_every_kernel_in_every_type():
    runs = correctness.runs("cuda", quick(("cuda",)).tables["cuda"])
    assert {(run.kernel, run.math) for run in runs} == {
        (k, m) for k in ("per_step", "single_block", "cooperative") for m in correctness.MATHS
    }
    assert max(run.case.T for run in runs) < 100


@pytest.mark.parametrize("cells", [timings.CELLS, timings.CELLS_TRITON])
def test_a_kind_of_call_is_timed_at_every_size_that_it_is_timed_at_all(cells):
    """Dispatch asks the neighbours of a call in each direction."""
    kinds = {(c.layout, c.math, c.training) for c in cells}
    for kind in kinds:
        mine = [c for c in cells if (c.layout, c.math, c.training) == kind]
        sizes = [{getattr(c, name) for c in mine} for name in ("H", "B", "T")]
        assert len(mine) == len(set(mine)) == len(sizes[0]) * len(sizes[1]) * len(sizes[2])


class Launches(set):
    """The kernels of Triton that launches would compile: one for each layout, type and tile."""

    def __call__(self, kernel, grid, args, options) -> None:
        kinds = (a.dtype if isinstance(a, torch.Tensor) else type(a) for a in args)
        self.add((kernel.__name__, *kinds, *sorted(options.items())))


@pytest.fixture
def launches(monkeypatch):
    if util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from fastlstm.backends.triton import backend as triton
    from fastlstm.backends.triton import launch, planner

    monkeypatch.setattr(triton, "_INTERPRETER_DEVICE", planner.Device("H100", 90, 132, 227 << 10))
    found = Launches()
    with launch.instead(found):
        yield found


def _check(table: correctness.Table) -> None:
    """All that is launched for a table; nothing runs, so results hold nothing."""
    triton = load("triton")
    for run in correctness.runs("triton", table):
        case, dtype = replace(run.case, T=min(run.case.T, 100)), correctness.MATHS[run.math]
        with triton.force(run.kernel), correctness.tf32(run.math == "tf32"):
            if triton.unsupported_reason(correctness._spec(case, dtype, run.save, CPU)) is None:
                inputs = OpInputs(*make(case, dtype), case.reverse, run.save)
                h, c, gates, _, _ = triton.forward(inputs)
                triton.backward(inputs, Saved(h, c, gates), Grads(*make_grads(case, dtype)))


def _time(cells: tuple[timings.GridPoint, ...], kernels: tuple[str, ...]) -> None:
    every = {("triton", kernel, math) for kernel in load("triton").kernel_names for math in correctness.MATHS}
    passed = {kernel for kernel in every if kernel[1] in kernels}
    with blocklist.override_record(every - passed):
        for cell in dict.fromkeys(replace(cell, T=2) for cell in cells):  # T compiles nothing
            with correctness.tf32(cell.math == "tf32"):
                for contender in timings.Timed(cell, CPU).contenders(frozenset(passed)):
                    if contender.kernels:
                        contender.step()


def test_what_triton_compiles_by_default(launches):
    work = quick(("triton",))
    _check(work.tables["triton"])
    _time(work.cells, ("single_block",))
    assert len(launches) == work.compiled


@pytest.mark.slow
def test_what_triton_compiles_in_full(launches):
    work = full(("triton",))
    _check(work.tables["triton"])
    _time(work.cells, ("single_block", "streamed", "per_step"))
    assert len(launches) == work.compiled
