"""The suite and its report: `python -m benchmarks [--full] [--isa avx2] [--out FOLDER] [-k WORDS]`.

Runs the quick part (with --full all of it), prints a line a contender as it goes, and writes JSON, CSV, Markdown and
plots to FOLDER. `make bench` and `make bench-full` call this. The exit status is pytest's: not 0 where an output was wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.machine import limit_isa


def main() -> int:
    """Run pytest on this folder, then the report on what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all cases, not the quick part alone")
    parser.add_argument("--isa", choices=("avx2", "native"), default="native", help="instruction set of both sides")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="time for the rounds of a case, at least three rounds"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the results")
    parser.add_argument("-k", dest="only", default="", help="only cases whose names match, as pytest's -k")
    options = parser.parse_args()
    limit_isa(options.isa, "benchmarks", sys.argv[1:])
    import pytest

    from benchmarks import report

    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / ("full.json" if options.full else "quick.json")
    file.unlink(missing_ok=True)
    words = [str(Path(__file__).parent), "-q", "-rs", "--benchmark-disable-gc", "--benchmark-columns=median,rounds"]
    words += [f"--benchmark-json={file}", f"--seconds={options.seconds}", f"--threads={options.threads}"]
    words += ["--full"] * options.full + (["-k", options.only] if options.only else [])
    status = pytest.main(words)
    if file.exists() and file.stat().st_size:
        report.main([str(file), "--out", str(options.out)])
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
