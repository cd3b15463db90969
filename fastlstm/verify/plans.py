"""What `fastlstm doctor --verify` runs by default and with --full, and how long that takes.

By default at most LIMIT seconds for a GPU model. The CUDA kernels have all of correctness.QUICK and timings.POINTS. Triton
compiles a kernel for each layout, type and size, about two seconds each: it is left to --full where the CUDA kernels are
there. Where they are not, its kernel `single_block` is checked and timed, the one that can win (docs/gpu-resources.md).

`estimate` counts calls, steps and products at the costs below. Those of calls and steps are what docs/gpu-measured.md has
of an H200, roughly; the others are guesses, the references' are of a CPU core. docs/verify.md has the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastlstm.testing import accuracy
from fastlstm.verify import correctness, isolate, timings
from fastlstm.verify.correctness import MATHS, Table
from fastlstm.verify.stages import Process
from fastlstm.verify.timings import TimingPoint

CANDIDATES = ("cuda", "triton")
LIMIT = 170.0  # seconds for a GPU model by default


@dataclass(frozen=True)
class VerifyWorkload:
    """What is done on a GPU: tables of cases by backend, sizes to time, and limits in seconds.

    timeout: without a result (a compiler may be at work) before a process is ended; check_limit: for the checks of a
    backend; total_limit: for all together; compiled: kernels of Triton that this compiles, as counted by
    tests/verify/test_plans.py; left_out: what --full would add.
    """

    tables: dict[str, Table]
    points: tuple[TimingPoint, ...]
    timeout: float
    check_limit: float
    total_limit: float
    compiled: int = 0
    left_out: str = ""


@dataclass(frozen=True)
class VerifyPlan:
    """Candidates, what is done with those that are here, and how work is run."""

    candidates: tuple[str, ...]
    workload: Callable[[tuple[str, ...]], VerifyWorkload]
    process: Process = isolate.stream


def quick(present: tuple[str, ...]) -> VerifyWorkload:
    """Within LIMIT seconds; checks that are not done after 100 of them are given up, so that something is timed."""
    limits = (60.0, 100.0, LIMIT)
    if "cuda" in present:
        left_out = "Triton's kernels, the whole table of cases" if "triton" in present else "the whole table of cases"
        return VerifyWorkload({"cuda": correctness.QUICK}, timings.POINTS, *limits, 0, left_out)
    if "triton" in present:
        left_out = "Triton's kernels for larger sizes, the whole table of cases"
        return VerifyWorkload({"triton": correctness.QUICK_TRITON}, timings.POINTS_TRITON, *limits, 50, left_out)
    return VerifyWorkload({}, (), *limits)


def full(present: tuple[str, ...]) -> VerifyWorkload:
    """Every case through every kernel, every size."""
    compiled = 385 if "triton" in present else 0
    return VerifyWorkload(
        dict.fromkeys(present, correctness.WHOLE), timings.POINTS, 600.0, 7200.0, 4 * 3600.0, compiled
    )


START_S = 8.0  # until a process has imported torch, and CUDA and cuDNN are ready
REFERENCE_MS, REFERENCE_NS = 1.3, 1300.0  # both references on a CPU core: a step, and an element of H²
RUN_MS, RUN_STEP_MS = (
    4.0,
    0.05,
)  # a case through a kernel, forward and backward, with what is copied and compared; a step
COMPILE_S = 2.0  # a kernel of Triton
POINT_MS, CALL_MS = 20.0, 0.3  # making a point's modules; a call without its steps
# of a forward call; a training step takes three times as long
STEP_US = {"torch": 20.0, "per_step": 30.0, "other": 8.0}
TFLOPS = {"float32": 45.0, "tf32": 200.0, "bfloat16": 400.0, "float16": 400.0}


def estimate(workload: VerifyWorkload) -> float:
    """Seconds that a GPU like an H100 takes for all of it, by the guesses above."""
    checked = COMPILE_S * workload.compiled + sum(START_S + _check_seconds(table) for table in workload.tables.values())
    kernels = {"cuda": ("per_step", "other"), "triton": ("per_step", "other", "other")}
    names = [k for backend in workload.tables for k in kernels.get(backend, ("per_step",))]
    return checked + START_S + sum(_timing_seconds(point, names) for point in workload.points)


def _check_seconds(table: Table) -> float:
    types, kernels = len({MATHS[math] for math in table.maths}), len(table.kernels) or 4
    seconds = 0.0
    for case in table.cases:
        draws = len(accuracy.draws(case))
        seconds += types * (1e-3 * REFERENCE_MS * case.T * draws + 1e-9 * REFERENCE_NS * case.H**2)
        seconds += 1e-3 * draws * len(table.maths) * kernels * len(table.saves) * (RUN_MS + RUN_STEP_MS * case.T)
    return seconds


def _timing_seconds(point: TimingPoint, kernels: list[str]) -> float:
    backward = 3 if point.training else 1
    steps = 1e-6 * point.T * sum(STEP_US[name] for name in ("torch", *kernels))
    products = (len(kernels) + 1) * 16e-12 * point.H**2 * point.B * point.T / TFLOPS[point.math]
    call = backward * (steps + products) + 1e-3 * CALL_MS * (len(kernels) + 1)
    return 1e-3 * POINT_MS + (2 + timings.ROUNDS) * call
