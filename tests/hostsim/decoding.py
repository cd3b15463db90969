"""Runs of the sampling loop on the simulated GPU, and what the loop in torch operations draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

import fastlstm
from tests.hostsim import backend as hostsim
from tests.sampling.models import Model


@dataclass(frozen=True)
class Run:
    """num streams draw `length` ids; seed: of the noise and of the schedule; options: of `fastlstm.decode`."""

    num: int
    seed: int = 0
    length: int = 6
    sms: int = 5
    shared_kib: int = 99
    dtype: torch.dtype | None = None
    options: Mapping = field(default_factory=dict)

    def draw(self, model: Model) -> fastlstm.Decoded:
        """In two calls: streams may end in the first, also with its last id."""
        options = dict(self.options)
        drawing = fastlstm.Decoder(*model.args, dtype=self.dtype).start(
            [1, 0, 1], num=self.num, seed=self.seed, **options
        )
        first, second = drawing.draw(2, log_probs=True), drawing.draw(self.length - 2, log_probs=True)
        ids, log_probs = (torch.cat([getattr(part, name) for part in (first, second)]) for name in ("ids", "log_probs"))
        return fastlstm.Decoded(ids, second.state, log_probs)


def decode(model: Model, run: Run, **settings) -> fastlstm.Decoded:
    """In launches on the simulated GPU."""
    device = {"sms": run.sms, "shared_kib": run.shared_kib, "seed": run.seed, **settings}
    with fastlstm.backend("hostsim"), hostsim.settings(**device):
        return run.draw(model)


def expected(model: Model, run: Run) -> fastlstm.Decoded:
    """By the definition."""
    with fastlstm.backend("reference"):
        return run.draw(model)
