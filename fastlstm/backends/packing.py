"""Weights in the blocks of the native step engine (csrc/cpu/weight_blocks.h): for `LSTM.stream` and the sampling loop."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import native
from fastlstm.memory import empty

_UNIT_BLOCK = 16  # kUnitBlock in csrc/kernels.h


def padded(n: int) -> int:
    """Round n up to whole blocks of units."""
    return -(-n // _UNIT_BLOCK) * _UNIT_BLOCK


def pack(
    w_h: Tensor, w_x: Tensor | None = None, *, gates: int = 1, count: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pack `count` groups of `gates` matrices, each of as many rows, into blocks.

    Args:
        w_h: (count * gates * units, P), on the CPU.
        w_x: (count * gates * units, I) or None; its row comes before that of w_h.
        gates: 4 for the gates of a layer, 1 for a projection or output layer.
        dtype: how weights are stored, torch.float32 or torch.bfloat16.

    Returns:
        The blocks, a flat tensor of `dtype`. Units are filled up with zeros to a multiple of 16.
    """
    w_h, w_x = _plain(w_h), None if w_x is None else _plain(w_x)
    units, P, I = w_h.shape[0] // (gates * count), w_h.shape[1], 0 if w_x is None else w_x.shape[1]
    out = empty((count * gates * padded(units) * (I + P),), dtype)
    native.load().pack(
        bfloat16=dtype is torch.bfloat16,
        out=out,
        w_x=w_x,
        w_h=w_h,
        count=count,
        gates=gates,
        units=units,
        I=I,
        P=P,
        threads=torch.get_num_threads(),
    )
    return out


def _plain(w: Tensor) -> Tensor:
    return (w if w.dtype is torch.float32 else w.to(torch.float32)).contiguous().resolve_neg()


dynamo_skip(__name__)
