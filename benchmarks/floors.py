"""The floors: what each kind of call must reach at least (a share: at most) beside nn.LSTM on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.record import Row
from benchmarks.work import geometric_mean


@dataclass(frozen=True)
class Floor:
    """One promise.

    covers: groups of cases, or whole names; column: the contender it speaks of (`cpu`: forced). statistic and bound:
    geometric mean or worst of ratios to nn.LSTM, at least; share of the cases that dispatch sends to torch, size as a
    share of nn.LSTM's, seconds or bytes, at most.
    """

    row: str
    covers: tuple[str, ...]
    statistic: str
    bound: float
    column: str = "cpu"

    def holds_for(self, case: str) -> bool:
        """Whether a case belongs to it."""
        return case in self.covers or case.split("/")[0] in self.covers

    def of(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows that it speaks of."""
        return [row for row in rows if row.contender == self.column and self.holds_for(row.case) and not row.skipped]

    def value(self, rows: list[Row]) -> float:
        """Return the figure to compare with `bound`. rows: those of `of`, at least one."""
        ratios = [row.ratio for row in rows]
        return {
            "mean": lambda: geometric_mean(ratios),
            "worst": lambda: min(ratios),
            "share": lambda: sum(row.chosen == "torch" for row in rows) / len(rows),
            "size": lambda: 1 / min(ratios),
            "seconds": lambda: max(row.p50 for row in rows),
            "bytes": lambda: max(row.p50 for row in rows),
        }[self.statistic]()

    def met(self, value: float) -> bool:
        return value >= self.bound if self.statistic in ("mean", "worst") else value <= self.bound


TRAINING = ("training", "training-b1")
FLOORS = (
    Floor("training step, B 16-128", ("training",), "mean", 1.2),
    Floor("training step, B 16-128", ("training",), "worst", 0.97),
    Floor("training step, B 1", ("training-b1",), "mean", 1.15),
    Floor("training step, B 1", ("training-b1",), "worst", 1.0),
    Floor("training step, whole grid", TRAINING, "worst", 0.97, "dispatched"),
    Floor("training step, whole grid, sent to torch", TRAINING, "share", 0.20, "dispatched"),
    Floor("forward, whole grid", ("forward", "forward-b1"), "mean", 1.05),
    Floor("forward, whole grid", ("forward", "forward-b1"), "worst", 0.93),
    Floor("packed, H 128", ("packed/H128",), "worst", 4.0),
    Floor("packed, H 256", ("packed/H256",), "worst", 3.0),
    Floor("bidirectional packed, H 256", ("packed-bidirectional",), "worst", 2.5),
    Floor("projection, H 256, P 128", ("projection",), "worst", 2.0),
    Floor("one step, 1x8: overhead of a call", ("one-step/1x8",), "worst", 1.0, "dispatched"),
    Floor("one step, 2x128", ("one-step/2x128",), "worst", 8.0),
    Floor("one step, 2x512", ("one-step/2x512",), "worst", 4.0),
    Floor("one step, 1x1024", ("one-step/1x1024",), "worst", 2.5),
    Floor("stream with bfloat16 weights, 2x512", ("stream",), "worst", 7.0),
    Floor("characters, 1x128", ("characters/1x128-B50-T50",), "worst", 2.0),
    Floor("characters, 2x128", ("characters/2x128-B50-T50",), "worst", 1.5),
    Floor("characters, 2x512", ("characters/2x512-B64-T64",), "worst", 1.4),
    Floor("sampling, one stream, 2x128", ("sampling/2x128",), "worst", 15.0),
    Floor("sampling, one stream, 2x512", ("sampling/2x512",), "worst", 20.0),
    Floor("sampling, 64 streams, 2x128", ("sampling-64",), "worst", 2.0),
    Floor("saved for backward", ("saved",), "size", 0.5),
    Floor("saved for backward with recompute", ("saved",), "size", 0.35, "recompute"),
    Floor("import fastlstm after torch", ("import",), "seconds", 0.05, "fastlstm"),
    Floor("the CPU wheel", ("wheel",), "bytes", 3e6, "fastlstm"),
)
