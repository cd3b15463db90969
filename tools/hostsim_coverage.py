"""Writes docs/hostsim-coverage.md: which lines of the CUDA kernels run in the host simulation, by gcov.

    python -m tools.hostsim_coverage          builds with --coverage, runs cases on every shape, takes some minutes

Templates and inlined functions count a line as reached when any instance reaches it. Exits with 1 below 95 %.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "hostsim-coverage.md"
FLOOR = 0.95
FLAGS = ("--coverage", "-fprofile-update=single", "-DFASTLSTM_LEAN_FEW=2")

# Runs in a process of its own: counts are written when it ends.
RUN = """
import torch
torch.set_num_threads(1)
from tests.hostsim.shapes import COOPERATIVE, LEAN, LEAN_MATHS, MATHS, PER_STEP, SINGLE_BLOCK, TF32
from tests.hostsim.shapes import check, check_bias, dense, even, fits
from tests.hostsim.backend import BACKEND, settings
from fastlstm.testing import cases, layers
from tests.hostsim.decoding import Run, decode
from tests.sampling.models import make_model
for k, case in enumerate([dense(3, 19, 40, initial=True, reset=True), *cases.SHORT]):
    for i, shape in enumerate((PER_STEP, *SINGLE_BLOCK, *COOPERATIVE)):
        math = MATHS[(k + i) % 4]
        if fits(shape, case, math):
            check(shape, case, math, seed=k, flags={flags!r})
    shape, case, math = LEAN[k % len(LEAN)], even(case), LEAN_MATHS[k % 3]
    if fits(shape, case, math):
        check(shape, case, math, seed=k, flags={flags!r})
for k, shape in enumerate(LEAN):  # several spans a warp
    for math in LEAN_MATHS:
        case = dense(2, 3, 264, initial=True, reset=k % 2 == 1)
        if fits(shape, case, math):
            check(shape, case, math, seed=k, flags={flags!r})
    check_bias(shape, dense(2, 19, 40, initial=True), LEAN_MATHS[k % 3], seed=k, flags={flags!r})
check(LEAN[2], dense(2, 3, 520, initial=True), TF32, seed=0, flags={flags!r})  # W_hh in shared memory
for k, case in enumerate((dense(3, 9, 24), dense(3, 3, 40, reset=True))):
    with settings(sms=40, shared_kib=227, seed=k, flags={flags!r}):
        layers.check(BACKEND, case, torch.bfloat16, count=2, chained=True)
follows = torch.tensor([[0, 1, 0, -1, 1, 0], [0, -1, 1, 0, -1, 1]])
for k, (num, options) in enumerate([
    (1, dict(temperature=0, stop=[3])), (2, dict(top_k=3)), (4, dict(stop=[[1, 0], 2], top_p=0.9)),
    (11, dict(stop=[4], top_k=5, top_p=0.8)), (3, dict(automaton=(follows, 0))),
]):
    for dtype in (None, torch.bfloat16):
        run = Run(num, seed=k, sms=(3, 9)[k % 2], dtype=dtype, options=options)
        decode(make_model(6, None, 21, 2), run, flags={flags!r})
"""


def counts(folder: Path) -> dict[str, Counter[int]]:
    """Executions of each line of the .cuh files, by file name; all builds of a line added up."""
    by_file: dict[str, Counter[int]] = {}
    with tempfile.TemporaryDirectory() as out:
        notes = [str(p) for p in folder.rglob("*.gcno")]
        subprocess.run(["gcov", "--json-format", *notes], cwd=out, check=True, capture_output=True)
        for report in Path(out).glob("*.gcov.json.gz"):
            for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                name = Path(file["file"])
                if name.suffix == ".cuh":
                    lines = by_file.setdefault(name.name, Counter())
                    for line in file["lines"]:
                        lines[line["line_number"]] += line["count"]
    return by_file


def render(by_file: dict[str, Counter[int]]) -> str:
    """The page."""
    rows = ["| file | lines | reached | not reached |", "| --- | --- | --- | --- |"]
    for name, lines in sorted(by_file.items()):
        missed = sorted(n for n, count in lines.items() if not count)
        share = 1 - len(missed) / len(lines)
        rows.append(f"| {name} | {len(lines)} | {share:.1%} | {', '.join(map(str, missed)) or '-'} |")
    head = (
        "# Lines of the CUDA kernels that the host simulation runs\n\nWritten by `python -m tools.hostsim_coverage` (gcov). "
        f"All files together: **{share_of(by_file):.1%}**; the test wants {FLOOR:.0%}.\n\n"
    )
    return head + "\n".join(rows) + "\n"


def share_of(by_file: dict[str, Counter[int]]) -> float:
    """The part of all lines that ran."""
    lines = [count for one in by_file.values() for count in one.values()]
    return sum(count > 0 for count in lines) / len(lines)


def measure(folder: Path) -> dict[str, Counter[int]]:
    """Build in `folder`, run, and count."""
    env = {**os.environ, "FASTLSTM_BUILD": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", RUN.format(flags=FLAGS)], check=True, env=env, cwd=folder)
    return counts(folder)


def main() -> int:
    """Measure and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        by_file = measure(Path(folder))
    PAGE.write_text(render(by_file), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
    return int(share_of(by_file) < FLOOR)


if __name__ == "__main__":
    sys.exit(main())
