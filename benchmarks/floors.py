"""The floors: what each kind of call must reach at least (a share: at most) beside nn.LSTM on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.work import geometric_mean

Ratios = Mapping[str, float]  # case → ratio to nn.LSTM


@dataclass(frozen=True)
class Floor:
    """One promise. groups: whose cases it covers; statistic: geometric mean, worst, or share sent to torch.

    bound: at least this (a share: at most); column: `cpu` (forced) or `dispatched`.
    """

    row: str
    groups: tuple[str, ...]
    statistic: str
    bound: float
    column: str = "cpu"

    def covers(self, name: str) -> bool:
        """Whether a case belongs to it: its group, or its whole name."""
        return name.split("/")[0] in self.groups or name in self.groups

    def value(self, ratios: Ratios, chosen: Mapping[str, str]) -> float:
        """Return the figure to compare with `bound`."""
        covered = {name: ratio for name, ratio in ratios.items() if self.covers(name)}
        if self.statistic == "share":
            return sum(chosen[name] == "torch" for name in covered) / len(covered)
        return geometric_mean(covered.values()) if self.statistic == "mean" else min(covered.values())

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.statistic == "share" else value >= self.bound


TRAINING = ("training", "training-b1")
FLOORS = (
    Floor("training step, B 16-128", ("training",), "mean", 1.2),
    Floor("training step, B 16-128", ("training",), "worst", 0.97),
    Floor("training step, B 1", ("training-b1",), "mean", 1.15),
    Floor("training step, B 1", ("training-b1",), "worst", 1.0),
    Floor("training step, whole grid", TRAINING, "worst", 0.97, "dispatched"),
    Floor("training step, whole grid: sent to torch", TRAINING, "share", 0.20, "dispatched"),
    Floor("forward, whole grid", ("forward", "forward-b1"), "mean", 1.05),
    Floor("forward, whole grid", ("forward", "forward-b1"), "worst", 0.93),
    Floor("packed, H 128", ("packed/H128",), "worst", 4.0),
    Floor("packed, H 256", ("packed/H256",), "worst", 3.0),
    Floor("bidirectional packed, H 256", ("packed-bidirectional",), "worst", 2.5),
    Floor("projection, H 256, P 128", ("projection",), "worst", 2.0),
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
)
