"""Shared by the tests of the module: pairs of nn.LSTM and fastlstm.LSTM with the same weights, and all that they return."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM  # torch's own, even where a test has set torch.nn.LSTM
from torch.nn.utils import rnn

import fastlstm


def pair(*args: object, **kwargs: object) -> tuple[nn.RNNBase, fastlstm.LSTM]:
    """An nn.LSTM and a fastlstm.LSTM with the same numbers in their weights."""
    torch_lstm, lstm = TORCH_LSTM(*args, **kwargs), fastlstm.LSTM(*args, **kwargs)
    lstm.load_state_dict(torch_lstm.state_dict())
    return torch_lstm, lstm


def leaves(value: object) -> list[Tensor]:
    """The tensors in nested tuples, those of a PackedSequence without its sizes and orders."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, rnn.PackedSequence):
        return [value.data]
    return [leaf for item in value for leaf in leaves(item)]


def results(lstm: nn.Module, x: object, hx: object = None) -> list[Tensor]:
    """Everything that comes out, then every gradient that goes in."""
    inputs = [v for v in (*leaves(x), *leaves(hx or ())) if v.requires_grad]
    for v in (*inputs, *lstm.parameters()):
        v.grad = None
    outputs = leaves(lstm(x, hx))
    weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) for y in outputs]
    torch.autograd.backward(outputs, weights)
    return [y.detach() for y in outputs] + [v.grad for v in (*inputs, *lstm.parameters())]
