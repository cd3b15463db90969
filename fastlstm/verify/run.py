"""`fastlstm doctor --verify`: check every kernel on each GPU model, time those that passed, record the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata, util
from typing import NamedTuple

import torch

from fastlstm import __version__, dispatch
from fastlstm.backends import blocklist
from fastlstm.verify import correctness, plans, record, stages, timings
from fastlstm.verify.correctness import CaseRun, Outcome, Verdict
from fastlstm.verify.plans import VerifyPlan, VerifyWorkload
from fastlstm.verify.stages import DeadlineError, Limits, ProcessFailure
from fastlstm.verify.timings import ClockFunction, DeviceClock, Fault, KernelKey, TimingPoint

PASSED, FAILED, NO_GPU = 0, 1, 2  # exit codes
SHOWN = 5  # failures that are printed
Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """A GPU to verify: device, model, and what tells the seconds there."""

    device: torch.device
    name: str
    clock: ClockFunction


class Failure(NamedTuple):
    """Why a kernel is not used: WRONG results, or FAILED: it raised, crashed or hung."""

    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return f"{self.verdict.name}: {self.reason}"


@dataclass
class VerifyResults:
    """The results, kernel by kernel. pending: runs that are still to be done; passes: runs that were right."""

    pending: dict[KernelKey, int] = field(default_factory=dict)
    passes: dict[KernelKey, int] = field(default_factory=dict)
    failures: dict[KernelKey, list[Failure]] = field(default_factory=dict)
    ratios: dict[KernelKey, float] = field(default_factory=dict)
    redrawn: list[dict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)

    def add_failure(self, kernel: KernelKey, reason: str, verdict: Verdict = Verdict.FAILED) -> None:
        self.failures.setdefault(kernel, []).append(Failure(verdict, reason))

    def passed(self) -> frozenset[KernelKey]:
        """The kernels that did all of their runs, one at least, and none of them wrong."""
        return frozenset(k for k, n in self.passes.items() if n and not self.pending.get(k) and k not in self.failures)

    def add_outcome(self, outcome: Outcome) -> None:
        """Count an outcome."""
        kernel = (outcome.backend, outcome.kernel, outcome.math)
        self.pending[kernel] -= 1
        if outcome.verdict in (Verdict.WRONG, Verdict.FAILED):
            self.add_failure(kernel, f"{outcome.case}: {outcome.reason}", outcome.verdict)
        elif outcome.verdict is Verdict.PASSED:
            self.passes[kernel] = self.passes.get(kernel, 0) + 1
        if outcome.ratios:
            self.ratios[kernel] = max(self.ratios.get(kernel, 0.0), outcome.ratios[-1])
        if len(outcome.ratios) > 1:
            labels = dict(zip(("backend", "kernel", "math"), kernel, strict=True))
            self.redrawn.append({**labels, "case": outcome.case, "ratios": list(outcome.ratios)})


def gpus() -> list[Machine]:
    """One GPU of each model that torch sees."""
    machines = {}
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        name = torch.cuda.get_device_name(index)
        machines.setdefault(name, Machine(device, name, DeviceClock(device)))
    return list(machines.values())


def no_gpu() -> str:
    """Why nothing can be verified here."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "there is no GPU that torch can use: this torch is built for the CPU alone. Nothing was verified."
    return "there is no GPU that torch can see (nvidia-smi tells whether the driver does). Nothing was verified."


def verify(say: Say, machines: list[Machine] | None = None, plan: VerifyPlan | None = None, full: bool = False) -> int:
    """Verify each GPU model and record what passed and won.

    say: prints a line; full: everything, instead of what fits three minutes. Returns the exit code: 0 all is right, 1 a
    kernel gave wrong results or crashed, 2 there is no GPU. Raises OSError where the record cannot be written.
    """
    machines = gpus() if machines is None else machines
    if not machines:
        say(no_gpu())
        return NO_GPU
    plan = plan or VerifyPlan(plans.CANDIDATES, plans.full if full else plans.quick)
    return max(_verify(say, machine, plan) for machine in machines)


def _verify(say: Say, machine: Machine, plan: VerifyPlan) -> int:
    begin = time.monotonic()
    absent = {name: reason for name in plan.candidates if (reason := unavailable(name, machine.device)) is not None}
    workload = plan.workload(tuple(name for name in plan.candidates if name not in absent))
    cases = sum(len(table.cases) for table in workload.tables.values())
    say(f"{machine.name} ({machine.device}): {cases} cases, {len(workload.points)} timed sizes, {_duration(workload)}")
    for name, reason in absent.items():
        say(f"  {name}: not here: {reason}")
    results = VerifyResults()
    for backend in workload.tables:
        check(say, backend, machine, plan, workload, results)
    if results.passed():
        _time(say, machine, plan, workload, results, workload.total_limit - (time.monotonic() - begin))
    timed = _usable(results)
    seconds = time.monotonic() - begin
    groups = {**_grouped(results), "absent": absent, "timings": timed, "seconds": seconds}
    path = record.write(machine.name, {"gpu": machine.name, **versions(), **groups})
    for line in summary(timed, tuple(workload.tables)):
        say(f"  {line}")
    if workload.left_out:
        say(f"  left out: {workload.left_out}; `fastlstm doctor --verify --full` does it")
    say(f"  recorded in {path}; calls on this GPU model now follow it")
    return FAILED if results.failures else PASSED


def _duration(workload: VerifyWorkload) -> str:
    minutes = max(1, round(plans.estimate(workload) / 60))
    return f"about {minutes} minute{'s' * (minutes > 1)} on an H100 by estimate, ended after {workload.total_limit / 60:.0f}"


def check(
    say: Say, backend: str, machine: Machine, plan: VerifyPlan, workload: VerifyWorkload, results: VerifyResults
) -> None:
    """Run a backend's table, and say what passed and what did not."""
    case_runs = correctness.runs(backend, workload.tables[backend])
    for case_run in case_runs:
        kernel = (backend, case_run.kernel, case_run.math)
        results.pending[kernel] = results.pending.get(kernel, 0) + 1
    hung: set[str] = set()  # never ended: not to be tried in another type either
    crashed: set[KernelKey] = set()

    def skip(case_run: CaseRun) -> bool:
        return case_run.kernel in hung or (backend, case_run.kernel, case_run.math) in crashed

    limits = Limits(workload.timeout, workload.check_limit)
    outcomes = stages.run_in_processes(
        plan.process, correctness.run, case_runs, lambda: (backend, machine.device), limits, skip
    )
    try:
        for outcome in outcomes:
            if isinstance(outcome, ProcessFailure) and outcome.item is None:
                results.add_failure((backend, "", ""), outcome.reason)
            elif isinstance(outcome, ProcessFailure):
                kernel = (backend, outcome.item.kernel, outcome.item.math)
                results.add_failure(kernel, f"{outcome.item.case.id}: {outcome.reason}")
                crashed.add(kernel)
                hung.update([outcome.item.kernel] * outcome.timed_out)
            else:
                results.add_outcome(outcome)
                crashed.update([(backend, outcome.kernel, outcome.math)] * outcome.fatal)
                hung.update([outcome.kernel] * outcome.hung)
    except DeadlineError:
        say(f"  {backend}: the time for checks is over ({workload.check_limit:.0f} s)")
    _report(say, backend, results)


def _report(say: Say, backend: str, results: VerifyResults) -> None:
    passed = results.passed()
    for kernel in (k for k in results.failures if k[0] == backend):
        failures = results.failures[kernel]
        for failure in failures[:SHOWN]:
            say(f"  {_kernel_name(kernel)}: {failure}")
        if len(failures) > SHOWN:
            say(f"  {_kernel_name(kernel)}: and {len(failures) - SHOWN} more")
    for kernel in (k for k, n in results.pending.items() if k[0] == backend and n and k not in results.failures):
        say(f"  {_kernel_name(kernel)}: not used, since {results.pending[kernel]} of its checks were not done")
    passed_kernels = [k for k in results.passes if k[0] == backend and k in passed]
    if passed_kernels:
        per_kernel = ", ".join(f"{' '.join(filter(None, k[1:]))} {results.passes[k]}" for k in passed_kernels)
        say(f"  {backend}: {sum(results.passes[k] for k in passed_kernels)} checks passed ({per_kernel})")


def _kernel_name(kernel: KernelKey) -> str:
    return " ".join(filter(None, kernel))


def _time(
    say: Say, machine: Machine, plan: VerifyPlan, workload: VerifyWorkload, results: VerifyResults, seconds: float
) -> None:
    """Time the points; rows are kept whatever happens to a process, and a kernel that crashed one is not used any more."""

    def args() -> tuple:
        return results.passed(), machine.device, machine.clock

    def add_fault(kernels: tuple[KernelKey, ...], point: TimingPoint | None, reason: str) -> None:
        say(f"  timing {point or ''} {', '.join(map(_kernel_name, kernels)) or 'no kernel'}: FAILED: {reason}")
        for kernel in kernels:
            results.add_failure(kernel, f"timed at {point}: {reason}")

    limits = Limits(workload.timeout, seconds)
    try:
        for outcome in stages.run_in_processes(plan.process, timings.run, workload.points, args, limits):
            if isinstance(outcome, ProcessFailure):
                add_fault(outcome.using, outcome.item, outcome.reason)
            elif isinstance(outcome, Fault):
                add_fault(outcome.kernels, outcome.point, outcome.reason)
            else:
                results.rows.append(outcome)
    except DeadlineError:
        say(f"  timing: the time is over; {len(results.rows)} of {len(workload.points)} sizes are done")


def _usable(results: VerifyResults) -> list[dict]:
    """The rows, without times as planned where a kernel of the plan has been found wrong since."""
    rows = []
    for row in results.rows:
        failed = {n for n, used in row["planned"].items() if any((n, k, row["math"]) in results.failures for k in used)}
        rows.append({**row, "seconds": {name: s for name, s in row["seconds"].items() if name not in failed}})
    return rows


def _grouped(results: VerifyResults) -> dict[str, dict]:
    """What the record holds by backend, kernel and math."""
    passed = results.passed()
    groups = {
        "passed": {k: n for k, n in results.passes.items() if k in passed},
        "failed": {k: [failure.reason for failure in failures[:20]] for k, failures in results.failures.items()},
        "unfinished": {k: n for k, n in results.pending.items() if n and k not in results.failures},
        "ratios": results.ratios,
    }
    grouped: dict[str, dict] = {"redrawn": results.redrawn}
    for group, values in groups.items():
        grouped[group] = {}
        for (backend, kernel, math), value in values.items():
            grouped[group].setdefault(backend, {}).setdefault(kernel, {})[math] = value
    return grouped


def unavailable(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot run a plain call on a device, whatever an earlier record says, or None."""
    from fastlstm.doctor import small_call

    with blocklist.override_record(()):
        return dispatch.unsupported_reason(backend, small_call(device))


def versions() -> dict[str, str]:
    """What was verified, and when."""
    triton = metadata.version("triton") if util.find_spec("triton") else "none"
    return {"date": time.strftime("%Y-%m-%d"), "fastlstm": __version__, "torch": torch.__version__, "triton": triton}


def summary(rows: list[dict], candidates: tuple[str, ...]) -> list[str]:
    """One line per layout, arithmetic and direction: how often each backend beats torch's own path, and by how much."""
    lines = []
    for call_type in dict.fromkeys((r["layout"], r["math"], r["training"]) for r in rows):
        seconds_of_rows = [r["seconds"] for r in rows if (r["layout"], r["math"], r["training"]) == call_type]
        words = []
        for name in candidates:
            ratios = sorted(s["torch"] / s[name] for s in seconds_of_rows if name in s and "torch" in s)
            if ratios:
                better = sum(ratio * record.MARGIN > 1 for ratio in ratios)
                median = ratios[len(ratios) // 2]
                words.append(f"{name} faster in {better} of {len(ratios)}, median {median:.2f} x torch's speed")
        title = f"{call_type[0]} {call_type[1]} {'training' if call_type[2] else 'inference'}"
        lines.append(f"{title}: {'; '.join(words) or 'no backend ran'}")
    return lines
