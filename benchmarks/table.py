"""The table of targets: `python -m benchmarks.table [--only REGEX] [--seconds S] [--isa avx2|native] [--from FILE]`.

Each case is printed as soon as it is measured: milliseconds of nn.LSTM and of fastlstm, the ratio with backend("cpu")
forced and as dispatched (medians of interleaved pairs; above 1 is faster than nn.LSTM), the least ratio that the case must
reach, the chosen backend, the share of a large GEMM's rate. Then every row of the table of targets follows. `--only` takes
names as `--list` prints them, or parts of them. `--from` reads a file that the suite or `--save` wrote and measures
nothing. The exit status is 1 if a target is missed. `python -m benchmarks --quick` prints a few of these cases.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import memory, overheads, schema
from benchmarks.machine import environment, gemm_rate, limit_isa
from benchmarks.runner import run_case
from benchmarks.schema import Row
from benchmarks.suite import CASES, BenchmarkCase
from benchmarks.targets import TARGETS, least_ratio

OTHERS = {
    "saved": partial(memory.rows, 64, 50, 256),
    "import": overheads.import_rows,
    "wheel": overheads.wheel_rows,
    "after": overheads.after_rows,
    "corpus": overheads.corpus_rows,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure or read, and print; return 1 if a target is missed."""
    options = _options(argv)
    if options.source:
        return _print_targets(schema.read(options.source))
    names = [case.name for case in cases_with_targets()] + list(OTHERS)
    if options.list:
        print("\n".join(name for name in names if re.search(options.only, name)))
        return 0
    limit_isa(options.isa, "benchmarks.table", sys.argv[1:] if argv is None else list(argv))
    cases = [case for case in cases_with_targets() if re.search(options.only, case.name)]
    rows = measure(cases, options.seconds, options.threads)
    for name, make in OTHERS.items():
        if re.search(options.only, name):
            rows += _print_sizes([replace(row, **environment()) for row in make()])
    if options.save:
        schema.write_csv(options.save, rows)
    return _print_targets(rows)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that the case's name must contain")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for a case, at least three rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=("avx2", "native"), default="avx2", help="instruction set of both sides")
    parser.add_argument("--save", type=Path, help="write the rows to this CSV file")
    parser.add_argument("--from", dest="source", type=Path, help="read rows from this CSV or JSON file")
    return parser.parse_args(argv)


def cases_with_targets() -> list[BenchmarkCase]:
    """Return the cases that a target covers."""
    return [case for case in CASES if any(target.applies_to(case.name) for target in TARGETS)]


def measure(cases: Sequence[BenchmarkCase], seconds: float, threads: int) -> list[Row]:
    """Check, time and print each case, without competitors; return the rows with the machine."""
    torch.set_num_threads(threads)
    print("  ".join(f"{name} {value}" for name, value in environment().items()))
    print(f"a large torch GEMM: {gemm_rate(threads) / 1e9:.0f} GFLOP/s")
    columns = f"{'torch ms':>10}{'cpu ms':>10}{'cpu':>8}{'disp':>8}{'target':>8}  {'chosen':10}{'of GEMM':>8}"
    print(f"{'case':30}{columns}", flush=True)
    rows = [row for case in cases for row in _print_case(case, seconds)]
    return [replace(row, **environment()) for row in rows]


def _print_case(case: BenchmarkCase, seconds: float) -> list[Row]:
    """Check and time one case and print its line; no rows if this fastlstm cannot run it."""
    try:
        rows = run_case(replace(case, competitors=()), seconds)
    except ImportError as error:
        print(f"{case.name:30}skipped: {error}", flush=True)
        return []
    by = {row.contender: row for row in rows}
    if by["cpu"].skipped:
        print(f"{case.name:30}skipped: {by['cpu'].skipped}", flush=True)
        return rows
    share = f"{by['cpu'].of_gemm:8.0%}" if by["cpu"].of_gemm else ""
    least = least_ratio(case.name)
    ratios = "".join(f"{by[name].ratio:8.2f}" for name in ("cpu", "dispatched"))
    ratios += " " * 8 if least is None else f"{least:8.2f}"
    milliseconds = f"{by['torch'].p50 * 1e3:10.3f}{by['cpu'].p50 * 1e3:10.3f}"
    print(f"{case.name:30}{milliseconds}{ratios}  {by['cpu'].chosen:10}{share}", flush=True)
    return rows


def _print_sizes(rows: list[Row]) -> list[Row]:
    """Print milliseconds or megabytes of each row."""
    for row in rows:
        size = f"{row.p50 * 1e3:10.3f} ms" if row.unit == "s" else f"{row.p50 / 1e6:10.3f} MB"
        print(f"{row.case + ' ' + row.contender:30}{size}", flush=True)
    return rows


def _print_targets(rows: list[Row]) -> int:
    """Print the targets whose cases were all measured; return 1 if one is missed."""
    measured, missed = {row.case for row in rows if row.contender == "cpu" and not row.skipped}, 0
    print(f"\n{'row':44}{'column':>11}{'':>9}{'measured':>10}{'target':>8}")
    for target in TARGETS:
        covered = target.select(rows)
        needed = {case.name for case in CASES if target.applies_to(case.name)}
        if not covered or not needed <= measured:
            continue
        value = target.value(covered)
        missed += not target.met(value)
        word = "" if target.met(value) else "  missed"
        print(
            f"{target.row:44}{target.column:>11}{target.statistic:>9}{value:10.3g}{target.bound:8.3g}{word}", flush=True
        )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
