"""The targets of the CPU kernels: the least speed of each kind of call beside nn.LSTM, and upper limits of sizes and times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.schema import Row
from benchmarks.workload import geometric_mean


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        row: its name in the table.
        covers: groups of cases, or whole names of cases.
        statistic: "mean" (geometric) or "worst" of the ratios to nn.LSTM; "share" of the cases that dispatch sends to
            torch; "size" as a share of nn.LSTM's; "seconds"; "bytes".
        bound: the least value of "mean" and "worst", the greatest value of the others.
        column: the contender whose rows count. `cpu` is fastlstm with that backend forced.
    """

    row: str
    covers: tuple[str, ...]
    statistic: str
    bound: float
    column: str = "cpu"

    def applies_to(self, case: str) -> bool:
        """Return whether the target covers a case."""
        return case in self.covers or case.split("/")[0] in self.covers

    def select(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows that the target covers."""
        return [row for row in rows if row.contender == self.column and self.applies_to(row.case) and not row.skipped]

    def value(self, rows: list[Row]) -> float:
        """Return the value to compare with `bound`. rows: what `select` returned, at least one."""
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
        """Return whether a value reaches the bound."""
        return value >= self.bound if self.statistic in ("mean", "worst") else value <= self.bound


TRAINING = ("training", "training-b1")
TARGETS = (
    Target("training step, B 16-128", ("training",), "mean", 1.2),
    Target("training step, B 16-128", ("training",), "worst", 0.97),
    Target("training step, B 1", ("training-b1",), "mean", 1.15),
    Target("training step, B 1", ("training-b1",), "worst", 1.0),
    Target("training step, whole grid", TRAINING, "worst", 0.97, "dispatched"),
    Target("training step, whole grid, sent to torch", TRAINING, "share", 0.20, "dispatched"),
    Target("forward, whole grid", ("forward", "forward-b1"), "mean", 1.05),
    Target("forward, whole grid", ("forward", "forward-b1"), "worst", 0.93),
    Target("packed, H 128", ("packed/H128",), "worst", 4.0),
    Target("packed, H 256", ("packed/H256",), "worst", 3.0),
    Target("bidirectional packed, H 256", ("packed-bidirectional",), "worst", 2.5),
    Target("projection, H 256, P 128", ("projection",), "worst", 2.0),
    Target("one step, 1x8: overhead of a call", ("one-step/1x8",), "worst", 1.0, "dispatched"),
    Target("one step, 2x128", ("one-step/2x128",), "worst", 8.0),
    Target("one step, 2x512", ("one-step/2x512",), "worst", 4.0),
    Target("one step, 1x1024", ("one-step/1x1024",), "worst", 2.5),
    Target("bfloat16, training step", ("bfloat16-training",), "mean", 1.6),
    Target("bfloat16, training step", ("bfloat16-training",), "worst", 1.05),
    Target("bfloat16, forward", ("bfloat16-forward",), "mean", 1.2),
    Target("bfloat16, forward", ("bfloat16-forward",), "worst", 1.0),
    Target("bfloat16, packed, H 256", ("bfloat16-packed",), "worst", 4.0),
    Target("bfloat16, projection, H 256, P 128", ("bfloat16-projection",), "worst", 2.5),
    Target("autocast to bfloat16, H 256, B 50", ("bfloat16-autocast",), "worst", 1.3),
    Target("one step, 2x640", ("one-step/2x640",), "worst", 8.0),
    Target("stream with bfloat16 weights, 2x512", ("stream/2x512-bfloat16",), "worst", 7.0),
    Target("stream with bfloat16 weights, 2x640", ("stream/2x640-bfloat16",), "worst", 12.0),
    Target("characters, 1x128", ("characters/1x128-B50-T50",), "worst", 2.0),
    Target("characters, 2x128", ("characters/2x128-B50-T50",), "worst", 1.5),
    Target("characters, 2x512", ("characters/2x512-B64-T64",), "worst", 1.4),
    Target("sampling, one stream, 2x128", ("sampling/2x128",), "worst", 15.0),
    Target("sampling, one stream, 2x512", ("sampling/2x512",), "worst", 20.0),
    Target("sampling, 64 streams, 2x128", ("sampling-64",), "worst", 2.0),
    Target("saved for backward", ("saved",), "size", 0.5),
    Target("saved for backward with recompute", ("saved",), "size", 0.35, "recompute"),
    Target("import fastlstm after torch", ("import",), "seconds", 0.05, "fastlstm"),
    Target("read and encode a text of 20 MB", ("corpus",), "seconds", 1.0, "fastlstm"),
    Target("the CPU wheel", ("wheel",), "bytes", 3e6, "fastlstm"),
)


def least_ratio(case: str) -> float | None:
    """Return the ratio to nn.LSTM that a case must reach by itself, in one of the columns; None if no target says so."""
    return max((t.bound for t in TARGETS if t.statistic == "worst" and t.applies_to(case)), default=None)
