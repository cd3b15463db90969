"""What the sampling loop (fastlstm/sampling) hands to a backend that runs all of it in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class DecoderLayer(NamedTuple):
    """One layer, float32. start: the table (V, 4H) in the first, the bias (4H,) in others; w_ih: None in the first."""

    start: Tensor
    w_ih: Tensor | None  # (4H, H)
    w_hh: Tensor  # (4H, H)


@dataclass(frozen=True)
class DecoderWeights:
    """A model to draw from, of V ids; `stored` is the type that weights (not starts) are rounded to."""

    layers: Sequence[DecoderLayer]
    w_out: Tensor  # (V, H)
    b_out: Tensor  # (V,)
    stored: torch.dtype


@dataclass(frozen=True)
class DecodeCall:
    """One call: feed ids and draw, for B streams.

    ids: (known + T, B) int64, of which `known` rows are given and the first `fed` were fed by earlier calls; what is drawn
    is written to the others, -2 where there was nothing to draw, nothing after a stream's end. drawn: rows that no stop may
    reach into. h, c: (L, B, H) float32, ended: (B,) uint8, states: (B,) int32 of the automaton or None; all four are
    brought up to date. log_probs: (T, B) float32 or None. first_stream: the number of the first stream, for its noise.
    follows: (S, V) int32 or None. The rest as in `fastlstm.Decoder.start`.
    """

    ids: Tensor
    known: int
    fed: int
    drawn: int
    h: Tensor
    c: Tensor
    ended: Tensor
    states: Tensor | None
    log_probs: Tensor | None
    first_stream: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    position: int
    stop: tuple[tuple[int, ...], ...]
    follows: Tensor | None


class DecoderRun(Protocol):
    """A decoder with its weights made ready."""

    most_streams: int  # of a call

    def run(self, call: DecodeCall) -> str:
        """Do a call; returns a line on what ran."""
