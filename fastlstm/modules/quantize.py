"""`fastlstm.quantize`: the LSTMs of a model with int8 weights, for inference."""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM

from fastlstm.modules.convert import is_compiled_lstm, is_other_lstm, named
from fastlstm.modules.int8_lstm import Int8LSTM
from fastlstm.modules.lstm import LSTM, NNLSTM
from fastlstm.ops.cell import Stack
from fastlstm.ops.int8 import Int8Weights, Matrix

Model = TypeVar("Model", bound=nn.Module)
_FLOAT = (TORCH_LSTM, LSTM, NNLSTM)


def quantize(model: Model) -> Model:
    """A copy of a model whose LSTMs have int8 weights; the model itself stays as it is.

    Every torch.nn.LSTM, fastlstm.LSTM and torch.ao.nn.quantized.dynamic.LSTM of the model, and the one inside each
    fastlstm.TokenLSTM, is a fastlstm.Int8LSTM in the copy. Weights are rounded to 8 bits with one scale a row; torch.ao's are
    int8 already and stay the same numbers. The rest of the model is copied by copy.deepcopy. Subclasses of these (an LSTM
    with parametrisations is one) and LSTMs inside TorchScript are copied as they are, and a warning names them.

    Args:
        model: a model, or an LSTM itself, in float32.

    Returns:
        The copy, in the mode of the model. It is for inference: its LSTMs give no gradients.

    Raises:
        ValueError: where a weight is not float32, not finite or made by a hook of torch.nn.utils, or an option is on that an
            Int8LSTM does not have.
    """
    made: dict[int, object] = {}  # what deepcopy has copied already, by id
    left, is_int8 = [], False
    for name, module in model.named_modules():
        if type(module) in _FLOAT:
            made[id(module)] = _quantized(name or "the model", module, _weights_of_float(name, module))
        elif _is_dynamic(module):
            made[id(module)] = _quantized(name or "the model", module, _weights_of_dynamic(name, module))
        elif isinstance(module, LSTM) or is_other_lstm(module) or is_compiled_lstm(module):
            left.append((name, module))
        is_int8 = is_int8 or isinstance(module, Int8LSTM)
    if not (made or left or is_int8):
        warnings.warn("fastlstm.quantize found no LSTM in the model; the copy is the same model", stacklevel=2)
    if left:
        warnings.warn(f"fastlstm.quantize left as they are: {named(left)}", stacklevel=2)
    return copy.deepcopy(model, made)


def _quantized(name: str, module: nn.Module, weights: list[Int8Weights]) -> Int8LSTM:
    """An Int8LSTM of a module's sizes, mode and device, with these weights."""
    on = [option for option in ("return_cell_states", "return_gates") if getattr(module, option, False)]
    if on:
        raise ValueError(f"{name} uses {', '.join(on)}, which an int8 LSTM does not have; turn it off first")
    made = Int8LSTM(
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bool(module.bias),
        module.batch_first,
        bidirectional=module.bidirectional,
        proj_size=getattr(module, "proj_size", 0),
        device=weights[0].w_ih.q.device,
    )
    made.set_weights(weights)
    return made.train(module.training)


@torch.no_grad()
def _weights_of_float(name: str, module: nn.RNNBase) -> list[Int8Weights]:
    stack = Stack.of(module)
    for own in module._flat_weights_names:
        if own not in module._parameters:
            raise ValueError(
                f"{name + '.' if name else ''}{own} is made at each call by a hook, expected a parameter; call "
                "remove_weight_norm, remove_spectral_norm or prune.remove of torch.nn.utils before fastlstm.quantize"
            )
    flat = [(own, getattr(module, own).detach()) for own in module._flat_weights_names]
    for own, w in flat:
        full = f"{name}.{own}" if name else own
        if w.dtype != torch.float32:
            raise ValueError(
                f"{full} is {w.dtype}, expected torch.float32; call model.float() before fastlstm.quantize"
            )
    quantised = [(Matrix.of(f"{name}.{own}" if name else own, w) if w.dim() == 2 else w) for own, w in flat]
    layers = [stack.layer(quantised, k) for k in range(stack.layers * stack.directions)]
    return [
        Int8Weights(own.w_ih, own.w_hh, None if own.b_ih is None else own.b_ih + own.b_hh, own.w_hr) for own in layers
    ]


def _is_dynamic(module: nn.Module) -> bool:
    """Whether it is torch's dynamically quantised LSTM; asked by name, since its import takes long and may be missing."""
    cls = type(module)
    return cls.__name__ == "LSTM" and cls.__module__.startswith("torch.ao.nn.quantized.dynamic")


@torch.no_grad()
def _weights_of_dynamic(name: str, module: nn.Module) -> list[Int8Weights]:
    """The int8 numbers of torch's dynamic LSTM as they are, its scale (or scales) as those of the rows."""
    if module.dtype != torch.qint8:
        raise ValueError(
            f"{name or 'the model'} is a dynamic LSTM of {module.dtype}, expected torch.qint8; quantise the float model instead"
        )
    weights, biases = module.get_weight(), module.get_bias()
    made = []
    for own in weights:
        if not own.startswith("weight_ih_"):
            continue
        suffix = own.removeprefix("weight_ih_")
        b_ih, b_hh = biases.get(f"bias_ih_{suffix}"), biases.get(f"bias_hh_{suffix}")
        bias = None if not module.bias else b_ih.float() + b_hh.float()
        w_ih, w_hh = (_same_numbers(w, weights[w]) for w in (own, f"weight_hh_{suffix}"))
        made.append(Int8Weights(w_ih, w_hh, bias, None))
    return made


def _same_numbers(name: str, w: Tensor) -> Matrix:
    per_row = w.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    zero = w.q_per_channel_zero_points() if per_row else torch.tensor(w.q_zero_point(), dtype=torch.int64, device="cpu")
    if bool(zero.any()):
        raise ValueError(
            f"{name} has a zero point that is not 0, expected symmetric int8; quantise the float model instead"
        )
    if per_row:
        return Matrix(w.int_repr(), w.q_per_channel_scales().float())
    return Matrix(w.int_repr(), torch.full((w.shape[0],), w.q_scale(), dtype=torch.float32, device="cpu"))
