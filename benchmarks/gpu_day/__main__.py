"""The command: reads the arguments and hands over to the driver, or (as a child) waits for a stage to run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import benchmarks.gpu_day
from benchmarks.gpu_day import stages


def main(argv: list[str] | None = None) -> int:
    """Run what the arguments say; returns the exit code, 0 where every stage ended well."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_day",
        description=benchmarks.gpu_day.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu-results"), help="folder for raw.jsonl, log.txt and texts"
    )
    parser.add_argument(
        "--seconds", type=float, default=585, help="for all of it; stages that no longer fit are skipped"
    )
    parser.add_argument(
        "--stage", nargs="+", default=[], metavar="NAME", help=f"only these: {', '.join(stages.names())}"
    )
    parser.add_argument("--rehearse", action="store_true", help="every stage's code without a GPU, on tiny sizes")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        from benchmarks.gpu_day import child

        return child.wait()
    from benchmarks.gpu_day import driver

    try:
        chosen = stages.chosen(options.stage)
    except ValueError as error:
        parser.error(str(error))
    return driver.Driver(options.out, options.seconds, options.rehearse).run(chosen)


if __name__ == "__main__":
    sys.exit(main())
