"""The table of floors, measured now: `python -m benchmarks.table [--only REGEX] [--seconds S] [--isa avx2|native]`.

Prints each case as soon as it is measured: milliseconds of nn.LSTM and of fastlstm, the ratio with backend("cpu") forced
and as dispatched (medians of interleaved pairs, above 1 is faster than nn.LSTM), the share of the bound of a large GEMM;
then every row of the table beside its floor. `--only` takes names as `--list` prints them, or parts of them.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks import saved
from benchmarks.floors import FLOORS
from benchmarks.machine import environment, gemm_rate, pinned
from benchmarks.suite import CASES, Timed
from benchmarks.timing import Interleaved, Times, measure, ratio
from benchmarks.work import Work

SAVED_CASE = (64, 50, 256)  # T, B, H
SAVED_FLOORS = {"cpu": 0.5, "recompute": 0.35}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where a floor is missed."""
    options = _options(argv)
    pinned(options.isa, "benchmarks.table", sys.argv[1:] if argv is None else list(argv))
    promised = [case for case in CASES if any(floor.covers(case.name) for floor in FLOORS)]
    cases = [case for case in promised if re.search(options.only, case.name)]
    if options.list:
        print("\n".join([*(case.name for case in cases), "saved"]))
        return 0
    torch.set_num_threads(options.threads)
    print("  ".join(f"{key} {value}" for key, value in environment().items()))
    peak = gemm_rate()
    print(f"a large torch GEMM: {peak / 1e9:.0f} GFLOP/s")
    print(f"{'case':30}{'torch ms':>10}{'cpu ms':>10}{'cpu':>7}{'disp':>7}  {'chosen':10}{'of GEMM':>8}", flush=True)
    found = {case.name: result for case in cases if (result := _measured(case, options.seconds, peak))}
    missed = _floors(found) + (_saved() if re.search(options.only, "saved") else 0)
    return int(missed > 0)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that the case's name must contain")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for a case, at least three rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=("avx2", "native"), default="avx2", help="instruction set of both sides")
    return parser.parse_args(argv)


def _measured(case: Timed, seconds: float, peak: float) -> tuple[Times, Work] | None:
    """Check and time one case, and print its line; None where fastlstm cannot do it yet."""
    try:
        work = replace(case, peers=()).build()
    except (ImportError, NotImplementedError) as error:
        print(f"{case.name:30}skipped: {error}", flush=True)
        return None
    if "cpu" not in work.runs:
        print(f"{case.name:30}skipped: {work.skipped['cpu']}", flush=True)
        return None
    work.check()  # raises: nothing wrong is timed
    times = measure(Interleaved(work.runs, "cpu", work.inside), seconds)
    mine, other = statistics.median(times["cpu"]), statistics.median(times["torch"])
    share = f"{work.flops / mine / peak:8.0%}" if work.flops else ""
    ratios = "".join(f"{ratio(times, column, 'torch'):7.2f}" for column in ("cpu", "dispatched"))
    print(f"{case.name:30}{other * 1e3:10.3f}{mine * 1e3:10.3f}{ratios}  {work.chosen:10}{share}", flush=True)
    return times, work


def _floors(found: dict[str, tuple[Times, Work]]) -> int:
    """Print the floors whose cases were all measured; return how many are missed."""
    missed = 0
    print(f"\n{'row':44}{'column':>11}{'':>7}{'measured':>10}{'floor':>8}")
    for floor in FLOORS:
        needed = [case.name for case in CASES if floor.covers(case.name)]
        if not all(name in found for name in needed):
            continue
        ratios = {name: ratio(found[name][0], floor.column, "torch") for name in needed}
        value = floor.value(ratios, {name: found[name][1].chosen for name in needed})
        missed += not floor.holds(value)
        word = "" if floor.holds(value) else "  missed"
        print(f"{floor.row:44}{floor.column:>11}{floor.statistic:>7}{value:10.2f}{floor.bound:8.2f}{word}", flush=True)
    return missed


def _saved() -> int:
    """Print what is saved for backward beside nn.LSTM's; return how many floors are missed."""
    found, missed = saved.saved(*SAVED_CASE), 0
    for name, bound in SAVED_FLOORS.items():
        value = found[name] / found["torch"]
        missed += value > bound
        row = "saved for backward" + (" with recompute" if name == "recompute" else "")
        print(f"{row:44}{'cpu':>11}{'share':>7}{value:10.2f}{bound:8.2f}{'' if value <= bound else '  missed'}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
