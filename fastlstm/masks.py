"""Regularisation that nn.LSTM does not have: DropConnect on W_hh, and dropout whose mask is locked over time.

Masks are drawn from torch's generator, once a forward call, so a seed reproduces them and torch.utils.checkpoint
repeats them. Methods: Wan et al. 2013 and Merity et al. 2017 (weights), Gal and Ghahramani 2016 (locked masks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm import offsets

if TYPE_CHECKING:
    from fastlstm.layers import Rows
    from fastlstm.nn import LSTM


def weight_drop(lstm: LSTM, w_hh: Tensor) -> Tensor:
    """W_hh with each weight dropped with probability `lstm.weight_drop` for the whole sequence, in training."""
    if not (lstm.weight_drop and lstm.training):
        return w_hh
    return F.dropout(w_hh, lstm.weight_drop, training=True)


def locked(lstm: LSTM, rows: Rows, first: bool) -> Tensor:
    """A layer's input under one mask (B, ·) for all steps, in training; `first`: the module's input."""
    p = lstm.input_dropout if first else lstm.locked_dropout
    x, sizes = rows.data, rows.batch_sizes
    if not (p and lstm.training):
        return x
    if sizes is None:
        return x * F.dropout(torch.ones_like(x[:1]), p, training=True)
    N = x.shape[0]
    mask = F.dropout(x.new_ones(int(sizes[0]), x.shape[1]), p, training=True)
    return x * mask[torch.arange(N, device=x.device) - rows.offsets[offsets.steps(rows.offsets, N)]]
