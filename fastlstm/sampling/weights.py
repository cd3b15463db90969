"""The weights of a decoder: those of a TokenLSTM and of its output layer, checked, in the type they are held in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm.memory import check_whole
from fastlstm.modules.checks import check_weights
from fastlstm.modules.int8_lstm import Int8LSTM
from fastlstm.modules.token_lstm import TokenLSTM
from fastlstm.ops import int8
from fastlstm.ops.cell import Stack
from fastlstm.ops.int8 import Matrix


class Sizes(NamedTuple):
    """L layers of H units, P numbers of h a layer, V ids."""

    L: int
    H: int
    P: int
    V: int


class Layer(NamedTuple):
    """One layer. start: the table (V, 4H) in the first, the bias (4H,) in others; w_ih: (4H, P), None in the first."""

    start: Tensor
    w_ih: Tensor | Matrix | None
    w_hh: Tensor | Matrix  # (4H, P)
    w_hr: Tensor | Matrix | None  # (P, H)


class Weights(NamedTuple):
    """What a decoder computes with, in one type; `stored` is what weights (not table and biases) are rounded to.

    torch.int8: the layers' weights are int8 matrices, the output layer is float32.
    """

    sizes: Sizes
    layers: list[Layer]
    w_out: Tensor  # (V, P)
    b_out: Tensor  # (V,)
    stored: torch.dtype


def collect(model: TokenLSTM, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Weights:
    """Check and gather. Raises TypeError and ValueError."""
    _check(model, weight, bias, dtype)
    lstm = model.lstm
    sizes = Sizes(lstm.num_layers, lstm.hidden_size, lstm.proj_size or lstm.hidden_size, model.num_embeddings)
    if isinstance(lstm, Int8LSTM):
        return _collect_int8(model, sizes, weight, bias)
    flat = [getattr(lstm, name).detach() for name in lstm._flat_weights_names]
    real = torch.float64 if flat[0].dtype is torch.float64 and dtype is None else torch.float32
    flat = [w.to(real) for w in flat]
    stored = dtype or real
    (table,) = (made.detach().to(real) for made in model.tables(flat))
    per_layer, layers = len(flat) // sizes.L, []
    for k in range(sizes.L):
        w_ih, w_hh, *rest = flat[k * per_layer : (k + 1) * per_layer]
        start = table if k == 0 else rest[0] + rest[1] if lstm.bias else w_hh.new_zeros(4 * sizes.H)
        w_hr = rest[-1] if lstm.proj_size else None
        layers.append(Layer(start.contiguous(), w_ih if k else None, w_hh, w_hr))
    w_out = weight.detach().to(real)
    b_out = w_out.new_zeros(sizes.V) if bias is None else bias.detach().to(real)
    return Weights(sizes, layers, w_out, b_out, stored)


def _collect_int8(model: TokenLSTM, sizes: Sizes, weight: Tensor, bias: Tensor | None) -> Weights:
    """The same of a model whose layers are int8; table, biases and output layer are float32."""
    layers = []
    for k, own in enumerate(model.lstm.weights()):
        if k == 0:
            start = int8.token_table(*model.tokens, own)
        else:
            start = own.w_hh.scale.new_zeros(4 * sizes.H) if own.bias is None else own.bias
        layers.append(Layer(start.contiguous(), own.w_ih if k else None, own.w_hh, own.w_hr))
    w_out = weight.detach().to(torch.float32)
    b_out = w_out.new_zeros(sizes.V) if bias is None else bias.detach().to(torch.float32)
    return Weights(sizes, layers, w_out, b_out, torch.int8)


def _check(model: TokenLSTM, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> None:
    if not isinstance(model, TokenLSTM):
        raise TypeError(f"model is a {type(model).__name__}, expected a fastlstm.TokenLSTM")
    lstm = model.lstm
    check_whole(("weight", weight), ("bias", bias))
    if isinstance(lstm, Int8LSTM):
        lstm.checked_weights()
        if dtype is not None:
            raise ValueError(f"dtype is {dtype}, expected None: the model's weights are int8 and stay so")
    else:
        own = [getattr(lstm, name) for name in lstm._flat_weights_names]
        check_weights(lstm, Stack.of(lstm), own)
        check_whole(*zip(lstm._flat_weights_names, own, strict=True))
    if lstm.bidirectional:
        raise ValueError("a bidirectional model cannot be decoded: its backward direction begins at the last id")
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"dtype is {dtype}, expected torch.float32, torch.bfloat16 or None")
    device, P = lstm.weight_hh_l0.device, lstm.proj_size or lstm.hidden_size
    for name, value, shape in (("weight", weight, [model.num_embeddings, P]), ("bias", bias, [model.num_embeddings])):
        if value is None and name == "bias":
            continue
        if list(value.shape) != shape or not value.is_floating_point() or value.device != device:
            raise ValueError(
                f"{name} is {value.dtype} with shape {list(value.shape)} on {value.device}, expected floating {shape} "
                f"on {device}, as of torch.nn.Linear({P}, {model.num_embeddings})"
            )
