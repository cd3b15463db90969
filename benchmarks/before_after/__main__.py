"""Before and after: `python -m benchmarks.before_after BEFORE_TREE [--only REGEX] [--out FILE]`.

Times the CPU cases of the suite, and two more, in two worker processes: one imports fastlstm from BEFORE_TREE, the other from
this tree. They never run at the same time, and take turns within each case (before, after; after, before; …). The speed is
the median over rounds of (seconds before / seconds after): above 1 is faster than before. Cases of one step also show the
ratio to nn.LSTM in both workers. Both trees need their native module; the environment (FASTLSTM_ISA, …) is that of both. A
second checkout of one commit shows the noise. The exit status is 1 if a case failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.suite import CASES, BenchmarkCase
from benchmarks.timing import pair_ratios, quantile

TREE = Path(__file__).resolve().parents[2]
SAMPLE_SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 10e-3, 5, 201
HEADING = f"{'case':32}{'before ms':>12}{'after ms':>12}{'speed':>9}  20 % to 80 %      torch/before /after"
ComparisonRow = dict[str, str | float]


class CaseError(Exception):
    """A worker could not run a case, or its outputs differ from the other's."""


class WorkerProcess:
    """A process that imports fastlstm from `tree`; worker.py describes the requests."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree.resolve()
        command, env = (
            [sys.executable, Path(__file__).with_name("worker.py")],
            {**os.environ, "PYTHONPATH": str(self.tree)},
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=self.tree, env=env, **pipes)
        hello = self._reply()
        if self.tree not in Path(hello["file"]).resolve().parents:
            raise SystemExit(f"the worker of {self.tree} imported {hello['file']}; give the root of a checkout")
        print(f"{self.tree}: {hello['plan']}")

    def ask(self, **request: object) -> dict:
        """Send a request and return the reply; raises CaseError if that is an error."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        reply = self._reply()
        if "error" in reply:
            raise CaseError(f"{self.tree}: {reply['error']}")
        return reply

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker of {self.tree} ended with status {self.process.wait()}")
        return json.loads(line)


def request_of(case: BenchmarkCase, threads: int) -> dict:
    """`make` of a suite's case is a partial of a function that worker.py has too; a LayerCall is sent as its fields."""
    function, values = case.make.func, case.make.args
    arguments = dict(zip(function.__code__.co_varnames, values, strict=False))
    if "call" in arguments:
        call = arguments["call"]
        arguments = {"case": asdict(call.case), "L": call.L, "bidirectional": call.bidirectional, "train": call.train}
    return {"build": function.__name__, "arguments": arguments, "threads": case.threads or threads}


def requests(threads: int) -> dict[str, dict]:
    """Return case → request: every case of the suite that runs on the CPU, then two of other public functions."""
    suite = {case.name: request_of(case, threads) for case in CASES if not case.group.startswith("gpu")}
    decoder = {"build": "decoder", "arguments": {"L": 2, "H": 128}, "threads": threads}
    return suite | {"decoder/2x128": decoder, "charlm/names": {**decoder, "build": "charlm", "arguments": {"num": 8}}}


def compare(case: str, request: dict, before: WorkerProcess, after: WorkerProcess, seconds: float) -> ComparisonRow:
    """Build a case in both workers, check that the outputs have the same norms, and time them in turns."""
    old, new = (worker.ask(**request) for worker in (before, after))
    if [f"{norm:.3g}" for norm in old["norms"]] != [f"{norm:.3g}" for norm in new["norms"]]:
        raise CaseError(f"the outputs differ: their norms are {old['norms']} before and {new['norms']} after")
    once = max(old["seconds"], new["seconds"])
    calls = max(1, int(SAMPLE_SECONDS / once))
    contenders = [name for name in new["contenders"] if name == "fastlstm" or case.startswith("one-step")]
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / (2 * len(contenders) * once * (calls + 1)))))
    times: dict[str, list[float]] = {f"{name} {side}": [] for name in contenders for side in ("before", "after")}
    for k in range(rounds):
        for side, worker in (("before", before), ("after", after))[:: -1 if k % 2 else 1]:
            for name in contenders:
                times[f"{name} {side}"].append(worker.ask(contender=name, calls=calls)["seconds"])
    speeds = pair_ratios(times, "fastlstm after", "fastlstm before")
    row: ComparisonRow = {"case": case, "rounds": rounds, "calls": calls}
    row |= {f"{side}_ms": 1e3 * statistics.median(times[f"fastlstm {side}"]) for side in ("before", "after")}
    row |= {"speed": statistics.median(speeds), "p20": quantile(speeds, 0.2), "p80": quantile(speeds, 0.8)}
    for side in ("before", "after"):
        ratios = pair_ratios(times, f"fastlstm {side}", f"torch {side}") if "torch" in contenders else [float("nan")]
        row[f"torch_{side}"] = statistics.median(ratios)
    return row


def line_of(row: ComparisonRow) -> str:
    """Return the line that is printed of a case."""
    text = "{case:32}{before_ms:12.4f}{after_ms:12.4f}{speed:9.3f}  {p20:6.3f} to {p80:6.3f}".format(**row)
    return (
        text
        if row["torch_after"] != row["torch_after"]
        else text + f"{row['torch_before']:10.2f}{row['torch_after']:7.2f}"
    )


def main(argv: list[str] | None = None) -> int:
    """Compare every case, print the table and its slowest case, and return 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE_TREE", help="root of the older checkout")
    parser.add_argument("--only", default="", metavar="REGEX", help="only cases whose names contain it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as CSV")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="time for the rounds of a case, at least five rounds"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch's threads in both workers")
    options = parser.parse_args(argv)
    before, after, rows, failed = WorkerProcess(options.before), WorkerProcess(TREE), [], 0
    print(HEADING)
    for case, request in requests(options.threads).items():
        if re.search(options.only, case):
            try:
                rows.append(compare(case, request, before, after, options.seconds))
                print(line_of(rows[-1]), flush=True)
            except CaseError as error:
                failed += 1
                print(f"{case:32}failed: {error}", flush=True)
    for worker in (before, after):
        worker.process.communicate()  # the end of stdin ends it
    if rows:
        print(f"worst:\n{line_of(min(rows, key=lambda row: row['speed']))}")
    if options.out and rows:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
