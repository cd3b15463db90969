"""`fastlstm doctor --verify`: check every backend on each GPU model, time those that passed, record the result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util

import torch

from fastlstm import __version__, dispatch
from fastlstm.verify import checks, isolate, record, timings
from fastlstm.verify.checks import Outcome, Table
from fastlstm.verify.timings import Cell, Clock, DeviceClock

CANDIDATES = ("cuda", "triton")
FINE, WRONG, NO_GPU = 0, 1, 2  # exit codes
PATIENCE = 300.0  # seconds without a result (a compiler may be at work) before a process is ended
SHOWN = 5  # failures that are printed
Process = Callable[..., Iterator]


@dataclass(frozen=True)
class Machine:
    """A GPU to verify: device, model, and what tells the seconds there."""

    device: torch.device
    name: str
    clock: Clock


@dataclass(frozen=True)
class Plan:
    """What is done: candidates, table of cases, cells to time, and how work is run."""

    candidates: tuple[str, ...] = CANDIDATES
    table: Table = checks.QUICK
    cells: tuple[Cell, ...] = timings.CELLS
    process: Process = isolate.stream


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


def verify(say: Callable[[str], None], machines: list[Machine] | None = None, plan: Plan | None = None) -> int:
    """Verify each GPU model and record what passed and won. say: prints a line.

    Returns the exit code: 0 all is right, 1 a backend gave wrong results or crashed, 2 there is no GPU. Raises OSError
    where the record cannot be written.
    """
    machines = gpus() if machines is None else machines
    if not machines:
        say(no_gpu())
        return NO_GPU
    return max(_verify(say, machine, plan or Plan()) for machine in machines)


def _verify(say: Callable[[str], None], machine: Machine, plan: Plan) -> int:
    say(f"{machine.name} ({machine.device}): {len(plan.table.cases)} cases, {len(plan.cells)} timed sizes")
    passed, failed, absent = {}, {}, {}
    for backend in plan.candidates:
        reason = why_not(backend, machine.device)
        if reason is not None:
            absent[backend] = reason
            say(f"  {backend}: not here: {reason}")
            continue
        count, wrong = check(backend, machine, plan)
        for line in wrong[:SHOWN]:
            say(f"  {backend}: WRONG: {line}")
        if len(wrong) > SHOWN:
            say(f"  {backend}: and {len(wrong) - SHOWN} more")
        if wrong or not count:
            failed[backend] = wrong or ["no case ran"]
        else:
            passed[backend] = count
            say(f"  {backend}: {sum(count.values())} checks passed ({_counted(count)})")
    try:
        rows = list(
            plan.process(timings.run, tuple(passed), machine.device, plan.cells, machine.clock, seconds=PATIENCE)
        )
    except isolate.LostError as error:
        say(f"  timing: {error}. Nothing was recorded.")
        return WRONG
    results = {"passed": passed, "failed": failed, "absent": absent, "timings": rows}
    where = record.write(machine.name, {"gpu": machine.name, **versions(), **results})
    for line in summary(rows, tuple(passed)):
        say(f"  {line}")
    say(f"  recorded in {where}; calls on this GPU model now follow it")
    return WRONG if failed else FINE


def check(backend: str, machine: Machine, plan: Plan) -> tuple[Counter, list[str]]:
    """Checks that passed, by kernel, and what is wrong."""
    count, wrong = Counter(), []
    try:
        for outcome in plan.process(checks.run, backend, machine.device, plan.table, seconds=PATIENCE):
            if outcome.wrong:
                wrong.append(_said(outcome))
            elif not outcome.skipped:
                count[outcome.kernel or backend] += 1
    except isolate.LostError as error:
        wrong.append(f"after {sum(count.values())} checks: {error}")
    return count, wrong


def _said(outcome: Outcome) -> str:
    return f"{outcome.kernel} {outcome.math} {outcome.case}: {outcome.wrong}".strip()


def _counted(count: Counter) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(count.items()))


def why_not(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot run a plain call on a device, or None."""
    from fastlstm.doctor import small_call

    return dispatch.why_not(backend, small_call(device))


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
