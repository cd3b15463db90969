"""One figure for each case: how many times as fast as nn.LSTM is fastlstm, as a user gets it.

The suite times fastlstm twice in every round: with its backend forced, and as dispatched. Where dispatch chooses the forced
backend, both rows time the same code, so they count as two series of measurements of one contender.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.schema import Row
from benchmarks.workload import geometric_mean

FORCED = ("cpu", "cuda", "triton")


@dataclass(frozen=True)
class Speed:
    """One case, or several put together: shapes, seconds of nn.LSTM and of fastlstm for each shape, the ratio and its spread.

    ratio: median over rounds; geometric mean over series and shapes. low, high: the lowest 20 % quantile and the highest
    80 % quantile of the rounds' ratios, over series and shapes.
    """

    shapes: int
    torch: tuple[float, ...]
    fastlstm: tuple[float, ...]
    ratio: float
    low: float
    high: float


def series(rows: Sequence[Row], case: str) -> list[Row]:
    """Return the rows that time fastlstm as a user gets it: as dispatched, and forced where dispatch chose the same."""
    measured = [row for row in rows if row.case == case and row.ratio is not None]
    dispatched = [row for row in measured if row.contender == "dispatched"]
    chosen = {row.chosen for row in dispatched if row.chosen}
    forced = [row for row in measured if row.contender in FORCED and (not chosen or row.contender in chosen)]
    return dispatched + forced


def speed(rows: Sequence[Row], cases: Sequence[str]) -> Speed | None:
    """Return the figure of these cases together; None where none of them was measured."""
    by_case = {case: series(rows, case) for case in cases}
    by_case = {case: case_rows for case, case_rows in by_case.items() if case_rows}
    if not by_case:
        return None
    torch = {row.case: row.p50 for row in rows if row.contender == "torch" and row.case in by_case}
    ratios = [geometric_mean([row.ratio for row in case_rows]) for case_rows in by_case.values()]
    every = [row for case_rows in by_case.values() for row in case_rows]
    return Speed(
        shapes=len(by_case),
        torch=tuple(torch[case] for case in by_case),
        fastlstm=tuple(geometric_mean([row.p50 for row in case_rows]) for case_rows in by_case.values()),
        ratio=geometric_mean(ratios),
        low=min(row.ratio_p20 for row in every),
        high=max(row.ratio_p80 for row in every),
    )


def as_used(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each case that fastlstm took part in, called `dispatched`, with the ratio of its series."""
    out = []
    for case in dict.fromkeys(row.case for row in rows):
        case_rows = series(rows, case)
        if case_rows:
            ratio = geometric_mean([row.ratio for row in case_rows])
            out.append(replace(case_rows[0], contender="dispatched", ratio=ratio))
    return out
