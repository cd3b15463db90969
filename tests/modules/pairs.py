"""Shared by the tests of the module: pairs of nn.LSTM and fastlstm.LSTM with the same weights, and all that they return."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM  # also where a test has put ours in the place of torch.nn.LSTM
from torch.nn.utils import rnn

import fastlstm


def pair(*args: object, **kwargs: object) -> tuple[nn.RNNBase, fastlstm.LSTM]:
    """An nn.LSTM and a fastlstm.LSTM with the same numbers in their weights."""
    theirs, mine = TORCH_LSTM(*args, **kwargs), fastlstm.LSTM(*args, **kwargs)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def leaves(value: object) -> list[Tensor]:
    """The tensors in nested tuples, those of a PackedSequence without its sizes and orders."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, rnn.PackedSequence):
        return [value.data]
    return [leaf for item in value for leaf in leaves(item)]


def results(lstm: nn.Module, x: object, hx: object = None) -> list[Tensor]:
    """Everything that comes out, then every gradient that goes in."""
    given = [v for v in (*leaves(x), *leaves(hx or ())) if v.requires_grad]
    for v in (*given, *lstm.parameters()):
        v.grad = None
    found = leaves(lstm(x, hx))
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) for y in found]
    torch.autograd.backward(found, weights)
    return [y.detach() for y in found] + [v.grad for v in (*given, *lstm.parameters())]
