"""`python -m benchmarks.gpu_check [--out FOLDER] [--seconds S] [-k WORDS]`: everything that can be asked of a GPU.

First the full table of cases through every kernel of every GPU backend, by the rule of accuracy; then layers and
character models, timed beside torch's own path (cuDNN). Prints as it goes and writes gpu-MODEL.csv. Exit code: 0 all is
right, 1 a result was wrong, 2 there is no GPU. `fastlstm doctor --verify` is the short form, which dispatch follows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import characters, layer, running
from benchmarks.layer import shape
from benchmarks.machine import environment
from benchmarks.record import Row, write_csv
from benchmarks.suite import CASES, Timed
from benchmarks.work import FORCED, WrongOutputError
from fastlstm.verify import checks, record, run
from fastlstm.verify.run import FINE, NO_GPU, WRONG, Machine, Plan

TYPES = (torch.float32, torch.bfloat16)


def timed(device: str = "cuda") -> list[Timed]:
    """Layers of every kind and character models on the device."""

    def make(case, **call) -> Callable:
        return partial(layer.layer, layer.Call(case, device=device, **call))

    cases = [case for case in CASES if case.group.startswith("gpu-")]
    for dtype in TYPES:
        kind = str(dtype).removeprefix("torch.")
        cases += [
            Timed(f"gpu-packed/H256-B64-{kind}", make(shape(128, 64, 256, packed=True), dtype=dtype)),
            Timed(
                f"gpu-bidirectional/2x256-B64-{kind}", make(shape(128, 64, 256), L=2, bidirectional=True, dtype=dtype)
            ),
            Timed(f"gpu-projection/H512-P256-B64-{kind}", make(shape(128, 64, 512, P=256), dtype=dtype)),
            Timed(f"gpu-one-step/2x512-{kind}", make(shape(1, 1, 512, initial=True), L=2, train=False, dtype=dtype)),
        ]
    for L, H, B, T in ((2, 128, 50, 50), (3, 512, 100, 100), (2, 1024, 128, 128)):
        step = partial(characters.training_step, L, H, B, T, device)
        cases.append(Timed(f"gpu-characters/{L}x{H}-B{B}-T{T}", step))
    return cases


@dataclass(frozen=True)
class Work:
    """What is done on each GPU model."""

    plan: Plan
    cases: tuple[Timed, ...]
    seconds: float
    folder: Path


def check(say: Callable[[str], None], machines: list[Machine], work: Work) -> int:
    """Check and time each GPU model; returns the exit code."""
    if not machines:
        say(run.no_gpu())
        return NO_GPU
    return max(_check(say, machine, work) for machine in machines)


def _check(say: Callable[[str], None], machine: Machine, work: Work) -> int:
    code = FINE
    say(f"{machine.name}: {len(work.plan.table.cases)} cases, then {len(work.cases)} timed")
    for backend in work.plan.candidates:
        reason = run.why_not(backend, machine.device)
        if reason is not None:
            say(f"  {backend}: not here: {reason}")
            continue
        passed, wrong = run.check(backend, machine, work.plan)
        say(f"  {backend}: {sum(passed.values())} checks passed, {len(wrong)} wrong")
        for line in wrong:
            say(f"    WRONG {line}")
            code = WRONG
    rows = []
    for case in work.cases:
        try:
            rows += _rows(say, case, work.seconds)
        except WrongOutputError as error:
            say(f"  {case.name}: WRONG {error}")
            code = WRONG
    work.folder.mkdir(parents=True, exist_ok=True)
    target = work.folder / record.path(machine.name).with_suffix(".csv").name
    write_csv(target, rows)
    say(f"  wrote {target}")
    return code


def _rows(say: Callable[[str], None], case: Timed, seconds: float) -> list[Row]:
    rows = [replace(row, **environment()) for row in running.run(case, seconds, running.take_turns)]
    for row in rows:
        if row.skipped:
            say(f"  {case.name} {row.contender}: {row.skipped}")
        else:
            say(f"  {case.name} {row.contender}: {row.p50 * 1e3:.3f} ms, {row.ratio:.2f} x torch's speed")
    return rows


def main(argv: list[str] | None = None) -> int:
    """Do all of it on every GPU model that is here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the results")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for the rounds of a case")
    parser.add_argument("-k", dest="only", default="", help="time only cases whose names have these words")
    given = parser.parse_args(argv)
    cases = tuple(case for case in timed() if given.only in case.name)
    return check(print, run.gpus(), Work(Plan(FORCED["cuda"], checks.WHOLE), cases, given.seconds, given.out))


if __name__ == "__main__":
    sys.exit(main())
