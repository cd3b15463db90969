"""`fastlstm doctor --verify`: check every kernel on each GPU model, time those that passed, record the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata, util

import torch

from fastlstm import __version__, dispatch
from fastlstm.backends import blocklist
from fastlstm.verify import correctness, plans, record, stages, timings
from fastlstm.verify.correctness import Outcome, Run
from fastlstm.verify.plans import VerifyPlan, Workload
from fastlstm.verify.stages import Limits, Lost, TimeUpError
from fastlstm.verify.timings import Clock, DeviceClock, Fault, GridPoint, Kernel

FINE, WRONG, NO_GPU = 0, 1, 2  # exit codes
SHOWN = 5  # failures that are printed
Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """A GPU to verify: device, model, and what tells the seconds there."""

    device: torch.device
    name: str
    clock: Clock


@dataclass
class Found:
    """What came out, kernel by kernel. todo: runs that are still to be done."""

    todo: dict[Kernel, int] = field(default_factory=dict)
    count: dict[Kernel, int] = field(default_factory=dict)
    wrong: dict[Kernel, list[str]] = field(default_factory=dict)
    ratios: dict[Kernel, float] = field(default_factory=dict)
    redrawn: list[dict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)

    def blame(self, kernel: Kernel, why: str) -> None:
        self.wrong.setdefault(kernel, []).append(why)

    def passed(self) -> frozenset[Kernel]:
        """The kernels that did all of their runs, one at least, and none of them wrong."""
        return frozenset(k for k, n in self.count.items() if n and not self.todo.get(k) and k not in self.wrong)

    def take(self, outcome: Outcome) -> None:
        """Count an outcome."""
        kernel = (outcome.backend, outcome.kernel, outcome.math)
        self.todo[kernel] -= 1
        if outcome.wrong:
            self.blame(kernel, f"{outcome.case}: {outcome.wrong}")
        elif not outcome.skipped:
            self.count[kernel] = self.count.get(kernel, 0) + 1
        if outcome.ratios:
            self.ratios[kernel] = max(self.ratios.get(kernel, 0.0), outcome.ratios[-1])
        if len(outcome.ratios) > 1:
            of = dict(zip(("backend", "kernel", "math"), kernel, strict=True))
            self.redrawn.append({**of, "case": outcome.case, "ratios": list(outcome.ratios)})


def gpus() -> list[Machine]:
    """One GPU of each model that torch sees."""
    found = {}
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        name = torch.cuda.get_device_name(index)
        found.setdefault(name, Machine(device, name, DeviceClock(device)))
    return list(found.values())


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
    work = plan.work(tuple(name for name in plan.candidates if name not in absent))
    cases = sum(len(table.cases) for table in work.tables.values())
    say(f"{machine.name} ({machine.device}): {cases} cases, {len(work.cells)} timed sizes, {_duration(work)}")
    for name, reason in absent.items():
        say(f"  {name}: not here: {reason}")
    found = Found()
    for backend in work.tables:
        check(say, backend, machine, plan, work, found)
    if found.passed():
        _time(say, machine, plan, work, found, work.whole - (time.monotonic() - begin))
    results = {**_grouped(found), "absent": absent, "timings": _usable(found), "seconds": time.monotonic() - begin}
    where = record.write(machine.name, {"gpu": machine.name, **versions(), **results})
    for line in summary(results["timings"], tuple(work.tables)):
        say(f"  {line}")
    if work.left_out:
        say(f"  left out: {work.left_out}; `fastlstm doctor --verify --full` does it")
    say(f"  recorded in {where}; calls on this GPU model now follow it")
    return WRONG if found.wrong else FINE


def _duration(work: Workload) -> str:
    minutes = max(1, round(plans.estimate(work) / 60))
    return f"about {minutes} minute{'s' * (minutes > 1)} on an H100 by estimate, ended after {work.whole / 60:.0f}"


def check(say: Say, backend: str, machine: Machine, plan: VerifyPlan, work: Workload, found: Found) -> None:
    """Run a backend's table, and say what passed and what did not."""
    todo = correctness.runs(backend, work.tables[backend])
    for one in todo:
        kernel = (backend, one.kernel, one.math)
        found.todo[kernel] = found.todo.get(kernel, 0) + 1
    hung: set[str] = set()  # never ended: not to be tried in another type either
    dead: set[Kernel] = set()

    def skip(one: Run) -> bool:
        return one.kernel in hung or (backend, one.kernel, one.math) in dead

    limits = Limits(work.silence, work.checking)
    try:
        for one in stages.through(plan.process, correctness.run, todo, lambda: (backend, machine.device), limits, skip):
            if isinstance(one, Lost) and one.item is None:
                found.blame((backend, "", ""), one.why)
            elif isinstance(one, Lost):
                kernel = (backend, one.item.kernel, one.item.math)
                found.blame(kernel, f"{one.item.case.id}: {one.why}")
                dead.add(kernel)
                hung.update([one.item.kernel] * one.silent)
            else:
                found.take(one)
                dead.update([(backend, one.kernel, one.math)] * one.dead)
                hung.update([one.kernel] * one.hung)
    except TimeUpError:
        say(f"  {backend}: the time for checks is over ({work.checking:.0f} s)")
    _report(say, backend, found)


def _report(say: Say, backend: str, found: Found) -> None:
    passed = found.passed()
    for kernel in (k for k in found.wrong if k[0] == backend):
        lines = found.wrong[kernel]
        for line in lines[:SHOWN]:
            say(f"  {_named(kernel)}: WRONG: {line}")
        if len(lines) > SHOWN:
            say(f"  {_named(kernel)}: and {len(lines) - SHOWN} more")
    for kernel in (k for k, n in found.todo.items() if k[0] == backend and n and k not in found.wrong):
        say(f"  {_named(kernel)}: not used, since {found.todo[kernel]} of its checks were not done")
    mine = [k for k in found.count if k[0] == backend and k in passed]
    if mine:
        each = ", ".join(f"{' '.join(filter(None, k[1:]))} {found.count[k]}" for k in mine)
        say(f"  {backend}: {sum(found.count[k] for k in mine)} checks passed ({each})")


def _named(kernel: Kernel) -> str:
    return " ".join(filter(None, kernel))


def _time(say: Say, machine: Machine, plan: VerifyPlan, work: Workload, found: Found, seconds: float) -> None:
    """Time the cells; rows are kept whatever happens to a process, and what ruined one is not used any more."""

    def args() -> tuple:
        return found.passed(), machine.device, machine.clock

    def fault(kernels: tuple[Kernel, ...], cell: GridPoint | None, why: str) -> None:
        say(f"  timing {cell or ''} {', '.join(map(_named, kernels)) or 'no kernel'}: WRONG: {why}")
        for kernel in kernels:
            found.blame(kernel, f"timed at {cell}: {why}")

    try:
        for one in stages.through(plan.process, timings.run, work.cells, args, Limits(work.silence, seconds)):
            if isinstance(one, Lost):
                fault(one.using, one.item, one.why)
            elif isinstance(one, Fault):
                fault(one.kernels, one.cell, one.why)
            else:
                found.rows.append(one)
    except TimeUpError:
        say(f"  timing: the time is over; {len(found.rows)} of {len(work.cells)} sizes are done")


def _usable(found: Found) -> list[dict]:
    """The rows, without times as planned where a kernel of the plan has been found wrong since."""
    rows = []
    for row in found.rows:
        bad = {n for n, used in row["planned"].items() if any((n, k, row["math"]) in found.wrong for k in used)}
        rows.append({**row, "seconds": {name: s for name, s in row["seconds"].items() if name not in bad}})
    return rows


def _grouped(found: Found) -> dict[str, dict]:
    """What the record holds by backend, kernel and math."""
    passed = found.passed()
    groups = {
        "passed": {k: n for k, n in found.count.items() if k in passed},
        "failed": {k: lines[:20] for k, lines in found.wrong.items()},
        "unfinished": {k: n for k, n in found.todo.items() if n and k not in found.wrong},
        "ratios": found.ratios,
    }
    result: dict[str, dict] = {"redrawn": found.redrawn}
    for group, values in groups.items():
        result[group] = {}
        for (backend, kernel, math), value in values.items():
            result[group].setdefault(backend, {}).setdefault(kernel, {})[math] = value
    return result


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
    for kind in dict.fromkeys((r["layout"], r["math"], r["training"]) for r in rows):
        mine = [r["seconds"] for r in rows if (r["layout"], r["math"], r["training"]) == kind]
        words = []
        for name in candidates:
            ratios = sorted(s["torch"] / s[name] for s in mine if name in s and "torch" in s)
            if ratios:
                better = sum(ratio * record.MARGIN > 1 for ratio in ratios)
                middle = ratios[len(ratios) // 2]
                words.append(f"{name} faster in {better} of {len(ratios)}, median {middle:.2f} x torch's speed")
        what = f"{kind[0]} {kind[1]} {'training' if kind[2] else 'inference'}"
        lines.append(f"{what}: {'; '.join(words) or 'no backend ran'}")
    return lines
