"""The suite and its report: `python -m benchmarks [--quick | --full] [--isa avx2] [--out FOLDER] [-k WORDS]`.

Runs the quick part of the cases, with --full all of them: prints a line for each contender and writes JSON, CSV, Markdown
and plots to FOLDER. `make bench` and `make bench-full` call this. The exit status is pytest's: not 0 if an output was wrong.

With --quick it takes half a minute: the cases of the quick part that have a target, without competitors, one line each with
the target beside the ratio to nn.LSTM; the rows are written to FOLDER/quick.csv.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks.machine import limit_isa


def main() -> int:
    """Run what the options ask for; return the exit status."""
    options = _options()
    limit_isa(options.isa, "benchmarks", sys.argv[1:])
    options.out.mkdir(parents=True, exist_ok=True)
    return _quick(options) if options.quick else _suite(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="half a minute: a few cases beside their targets")
    extent.add_argument("--full", action="store_true", help="all cases, not the quick part alone")
    parser.add_argument("--isa", choices=("avx2", "native"), default="native", help="instruction set of both sides")
    parser.add_argument(
        "--seconds", type=float, help="time for the rounds of a case, at least three rounds (3; quick: 1)"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the results")
    parser.add_argument(
        "-k", dest="only", default="", help="only cases whose names match, as pytest's -k (quick: REGEX)"
    )
    return parser.parse_args()


def _quick(options: argparse.Namespace) -> int:
    """Time the quick cases that have a target and write their rows."""
    from benchmarks import schema, table

    cases = [case for case in table.cases_with_targets() if case.quick and re.search(options.only, case.name)]
    rows = table.measure(cases, options.seconds or 1.0, options.threads)
    schema.write_csv(options.out / "quick.csv", rows)
    print(f"wrote {options.out / 'quick.csv'}")
    return 0


def _suite(options: argparse.Namespace) -> int:
    """Run pytest on this folder, then the report on the file that it wrote."""
    import pytest

    from benchmarks import report

    file = options.out / ("full.json" if options.full else "quick.json")
    file.unlink(missing_ok=True)
    words = [str(Path(__file__).parent), "-q", "-rs", "--benchmark-disable-gc", "--benchmark-columns=median,rounds"]
    words += [f"--benchmark-json={file}", f"--seconds={options.seconds or 3.0}", f"--threads={options.threads}"]
    words += ["--full"] * options.full + (["-k", options.only] if options.only else [])
    status = pytest.main(words)
    if file.exists() and file.stat().st_size:
        report.main([str(file), "--out", str(options.out)])
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
