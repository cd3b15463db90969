"""Nsight Compute's source page as CSV: instructions with samples of warps that waited at them, and why.

`python -m benchmarks.gpu_day.sass ncu-….csv.gz` prints what a file says of each launch: its instructions with most samples.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

NAMES = ("Kernel Name", "Function Name")
TEXTS = ("Source", "SASS")
KEPT = (
    "Address", *TEXTS, "# Samples", "Instructions Executed", "Live Registers", "L2 Theoretical Sectors Global",
    "L2 Theoretical Sectors Global Excessive", "L1 Wavefronts Shared", "L1 Wavefronts Shared Ideal",
    "L2 Theoretical Sectors Local",
)  # fmt: skip
SAMPLED, REASONS = "Warp Stall Sampling", ("stall_", "smsp__pcsamp_warps_issue_stalled_")  # the same by two names
MOST = 6_000_000  # characters of a launch before they are compressed, to a tenth or less
HOT = 16


class Launch(NamedTuple):
    """The instructions of a launch, in the order of addresses."""

    kernel: str
    columns: list[str]
    rows: list[list[str]]

    def numbers(self, column: str) -> list[float]:
        at = self.columns.index(column)
        return [number(row[at]) for row in self.rows]


def number(text: str) -> float:
    """The number of a cell; 0 where it has none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return 0.0


def launches(text: str) -> list[Launch]:
    """What a source page says of each launch, in the columns that matter; [] where it says nothing."""
    parsed: list[Launch] = []
    kernel, columns = "", []
    for cells in _cells(text):
        if cells and cells[0].strip() in NAMES:
            kernel, columns = (cells[1].strip() if len(cells) > 1 else ""), []
        elif any(name in cells for name in TEXTS) and len(cells) > 2:
            columns = cells
            parsed.append(Launch(kernel, columns, []))
        elif columns and len(cells) == len(columns):
            parsed[-1].rows.append(cells)
    return [_cut(launch) for launch in parsed if launch.rows]


def _cells(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        try:
            yield next(csv.reader([line]), [])
        except csv.Error:
            continue


def _cut(launch: Launch) -> Launch:
    """The columns that matter and are not zero throughout, each once."""
    starts = (SAMPLED, _reason(launch.columns))
    kept = []
    for i, name in enumerate(launch.columns):
        keep = (name in KEPT or name.startswith(starts)) and name not in launch.columns[:i]
        if keep and (name in KEPT[:3] or any(number(row[i]) for row in launch.rows)):
            kept.append(i)
    rows = [[" ".join(row[i].split()) for i in kept] for row in launch.rows]
    return Launch(launch.kernel, [launch.columns[i] for i in kept], rows)


def _reason(columns: list[str]) -> str:
    """How the names of reasons begin."""
    return next((start for start in REASONS if any(name.startswith(start) for name in columns)), REASONS[0])


def written(kept_launches: Iterable[Launch]) -> str:
    """Launches as CSV, each behind a line with its kernel's name."""
    parts = []
    for launch in kept_launches:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([NAMES[0], launch.kernel])
        writer.writerow(launch.columns)
        writer.writerows(launch.rows)
        parts.append(file.getvalue()[:MOST])
    return "".join(parts)


def summary(launch: Launch) -> dict:
    """Samples by reason, and the instructions with most: offset in bytes, text, samples, what most of them waited for."""
    samples = _samples(launch)
    start = _reason(launch.columns)
    reasons = [name for name in launch.columns if name.startswith(start) and not _not_issued(name)]
    by_reason = {name: launch.numbers(name) for name in reasons}
    texts = [row[_text_at(launch)] for row in launch.rows]
    order = sorted(range(len(texts)), key=lambda i: -samples[i])[:HOT]
    hot = [
        [16 * i, texts[i][:80], int(samples[i]), _main({name: n[i] for name, n in by_reason.items()})] for i in order
    ]
    stalls = {_short(name): int(sum(n)) for name, n in sorted(by_reason.items(), key=lambda item: -sum(item[1]))}
    return {"instructions": len(texts), "samples": int(sum(samples)), "stalls": stalls, "hot": hot}


def _samples(launch: Launch) -> list[float]:
    for name in ("# Samples", *launch.columns):
        if name in launch.columns and (name == "# Samples" or name.startswith(SAMPLED)):
            return launch.numbers(name)
    return [0.0] * len(launch.rows)


def _text_at(launch: Launch) -> int:
    return next(launch.columns.index(name) for name in TEXTS if name in launch.columns)


def _not_issued(name: str) -> bool:
    return name.lower().replace("-", " ").replace("_", " ").rstrip(")").endswith("not issued")


def _main(by: dict[str, float]) -> str:
    most = max(by, key=lambda name: by[name], default="")
    return f"{_short(most)} {by[most]:.0f}" if most and by[most] else ""


def _short(name: str) -> str:
    return name.removeprefix(REASONS[1]).removeprefix(REASONS[0])


def main(paths: list[str]) -> None:
    for path in paths:
        for launch in launches(gzip.decompress(Path(path).read_bytes()).decode()):
            counts = summary(launch)
            print(
                launch.kernel, f"{counts['instructions']} instructions, {counts['samples']} samples", counts["stalls"]
            )
            for offset, text, samples, why in counts["hot"]:
                print(f"  {offset:6d} {samples:7d}  {text:<80} {why}")


if __name__ == "__main__":
    main(sys.argv[1:])
