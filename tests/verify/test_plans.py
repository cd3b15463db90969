"""What a verification runs by default and in full, what that takes by count, and what Triton compiles for it."""

from __future__ import annotations

from dataclasses import replace
from importlib import util
from itertools import product

import pytest
import torch

from fastlstm.backends import blocklist, cost_model, load
from fastlstm.backends.triton import planner
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from fastlstm.testing.cases import make, make_grads
from fastlstm.verify import correctness, plans, timings
from fastlstm.verify.plans import LIMIT, full, quick

CPU = torch.device("cpu")
PRESENT = [("cuda",), ("cuda", "triton"), ("triton",)]


@pytest.mark.parametrize("present", PRESENT)
def test_the_default_needs_less_than_three_quarters_of_its_limit_of_three_minutes(present):
    workload = quick(present)
    assert plans.estimate(workload) < LIMIT * 0.75
    assert workload.total_limit == LIMIT < 180
    assert workload.check_limit < workload.total_limit
    assert workload.left_out


@pytest.mark.parametrize(
    ("present", "minutes"), [(("cuda",), (10, 25)), (("cuda", "triton"), (30, 60)), (("triton",), (20, 40))]
)
def test_the_estimate_of_the_full_run_is_the_time_that_the_help_names(present, minutes):
    workload = full(present)
    assert minutes[0] < plans.estimate(workload) / 60 < minutes[1]
    assert set(workload.tables) == set(present)
    assert correctness.LONG[0] in workload.tables[present[0]].cases
    assert not workload.left_out


def test_by_default_triton_is_checked_only_where_the_cuda_kernels_are_not():
    assert set(quick(("cuda", "triton")).tables) == {"cuda"}
    assert quick(("triton",)).tables["triton"].kernels == ("single_block",)
    assert quick(()).tables == {}


def test_the_default_checks_every_kernel_in_every_type():
    case_runs = correctness.runs("cuda", quick(("cuda",)).tables["cuda"])
    kernels = product(("per_step", "single_block", "cooperative", "lean", "lean_layers"), correctness.MATHS)
    assert {(case_run.kernel, case_run.math) for case_run in case_runs} == {*kernels, ("decode", "float32")}
    assert max(case_run.case.T for case_run in case_runs if case_run.kernel != "decode") < 100


@pytest.mark.parametrize("math", ["tf32", "float16", "bfloat16"])
def test_the_default_reaches_passes_and_parts_of_the_gates_of_lean(math):
    lib, seen = cost_model.library(), set()
    gpu = cost_model.description(cost_model.KNOWN["H100"], lib)
    code = {"tf32": 1, "float16": 2, "bfloat16": 3}[math]
    for case in quick(("cuda",)).tables["cuda"].cases:
        for backward in (False, True):
            choice = lib.choose(gpu, code, case.H, max(case.B, 1), backward, case.projection, "lean")
            if choice.blocks >= 0 and case.N:
                passes = choice.t.row_tiles // choice.t.phase
                seen.add((backward, passes > 1, choice.t.gate_splits > 1))
    assert {(False, False, False), (False, True, False), (True, False, False), (True, True, True)} <= seen


def test_the_full_run_checks_every_kernel_of_triton_in_every_type():
    case_runs = correctness.runs("triton", full(("triton",)).tables["triton"])
    assert {(case_run.kernel, case_run.math) for case_run in case_runs} == {
        (k, m) for k in ("single_block", "streamed", "per_step") for m in correctness.MATHS
    }


@pytest.mark.parametrize("gpu", ["A100", "H100", "H200", "B200", "RTX 4090"])
def test_the_full_run_checks_every_tile_that_tritons_planner_has_for_a_gpu(gpu):
    """Also those that it picks only where the blocks of a smaller tile would outnumber the multiprocessors."""
    known = cost_model.KNOWN[gpu]
    limits = planner.GpuLimits(gpu, known.capability, known.sms, known.shared_bytes)
    cases = full(("triton",)).tables["triton"].cases

    def tiles(kernel, math, sizes):
        plans = (planner.choose(limits, H, B, math, only=kernel) for H, B in sizes)
        return {(plan.forward, plan.backward) for plan in plans if isinstance(plan, planner.TritonPlan)}

    for kernel, math in product(planner.KERNELS, ("half", "tf32", "ieee")):
        sizes = product((1, 16, 17, 64, 100, 128, 200, 256, 512, 1024), (1, 4, 16, 64, 256, 4096))
        assert tiles(kernel, math, {(c.H, c.B) for c in cases if c.B}) >= tiles(kernel, math, sizes), (kernel, math)


@pytest.mark.parametrize("points", [timings.POINTS, timings.POINTS_TRITON])
def test_each_call_type_is_timed_at_every_combination_of_its_sizes(points):
    """Dispatch asks the neighbours of a call in each direction."""
    call_types = {(c.layout, c.math, c.training) for c in points}
    for call_type in call_types:
        same_type = [c for c in points if (c.layout, c.math, c.training) == call_type]
        sizes = [{getattr(c, name) for c in same_type} for name in ("H", "B", "T")]
        assert len(same_type) == len(set(same_type)) == len(sizes[0]) * len(sizes[1]) * len(sizes[2])


class Launches(set):
    """The kernels of Triton that launches would compile: one for each layout, type and tile."""

    def __call__(self, kernel, grid, args, options) -> None:
        types = (a.dtype if isinstance(a, torch.Tensor) else type(a) for a in args)
        self.add((kernel.__name__, *types, *sorted(options.items())))


@pytest.fixture
def launches(monkeypatch):
    if util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from fastlstm.backends.triton import backend as triton
    from fastlstm.backends.triton import launch

    monkeypatch.setattr(triton, "_INTERPRETER_DEVICE", planner.GpuLimits("H100", 90, 132, 227 << 10))
    compiled = Launches()
    with launch.instead(compiled):
        yield compiled


def _check(table: correctness.Table) -> None:
    """All that is launched for a table; nothing runs, so results hold nothing."""
    triton = load("triton")
    for case_run in correctness.runs("triton", table):
        case, dtype = replace(case_run.case, T=min(case_run.case.T, 100)), correctness.MATHS[case_run.math]
        with triton.force(case_run.kernel), correctness.tf32(case_run.math == "tf32"):
            if triton.unsupported_reason(correctness._spec(case, dtype, case_run.save, CPU)) is None:
                inputs = OpInputs(*make(case, dtype), case.reverse, case_run.save)
                h, c, gates, _, _ = triton.forward(inputs)
                triton.backward(inputs, Saved(h, c, gates), Grads(*make_grads(case, dtype)))


def _time(points: tuple[timings.TimingPoint, ...], kernels: tuple[str, ...]) -> None:
    all_kernels = {("triton", kernel, math) for kernel in load("triton").kernel_names for math in correctness.MATHS}
    passed = {kernel for kernel in all_kernels if kernel[1] in kernels}
    with blocklist.override_record(all_kernels - passed):
        for point in dict.fromkeys(replace(point, T=2) for point in points):  # T compiles nothing
            with correctness.tf32(point.math == "tf32"):
                timed = timings.PointTiming(point, CPU)
                assert not list(timed.prepare(frozenset(passed)))
                for contender in timed.active:
                    if contender.kernels:
                        contender.step()


def test_triton_compiles_as_many_kernels_as_the_default_counts(launches):
    workload = quick(("triton",))
    _check(workload.tables["triton"])
    _time(workload.points, ("single_block",))
    assert len(launches) == workload.compiled


@pytest.mark.slow
def test_triton_compiles_as_many_kernels_as_the_full_run_counts(launches):
    workload = full(("triton",))
    _check(workload.tables["triton"])
    _time(workload.points, ("single_block", "streamed", "per_step"))
    assert len(launches) == workload.compiled
