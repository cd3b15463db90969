"""Ways in and out: every nn.LSTM of a model becomes a fastlstm.LSTM, and back.

The two classes share their base, their attributes and their parameters, so a swap only changes the class of the module
object. Optimisers, tied weights, hooks and other references to the module stay as they are.
"""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM  # also where someone has put ours in the place of torch.nn.LSTM

from fastlstm.modules.lstm import LSTM, check_restorable

Model = TypeVar("Model", bound=nn.Module)


def replace(model: Model) -> Model:
    """Swap every nn.LSTM in `model` (or `model` itself) for a fastlstm.LSTM, in place; returns the model.

    Subclasses of nn.LSTM and quantised LSTMs are left alone, and a warning names them.
    """
    left = []
    for name, module in model.named_modules():
        if type(module) is TORCH_LSTM:
            module.__class__ = LSTM
        elif _is_other_lstm(module):
            left.append((name, module))
    _warn("replace left alone what is not exactly torch.nn.LSTM", left)
    return model


def restore(model: Model) -> Model:
    """Swap every fastlstm.LSTM in `model` back for an nn.LSTM, in place; returns the model.

    For ONNX, TorchScript and quantisation. Subclasses of fastlstm.LSTM are left alone, and a warning names them. Raises
    ValueError, before anything is changed, where an option is on that nn.LSTM does not have.
    """
    swapped = [(name, module) for name, module in model.named_modules() if type(module) is LSTM]
    for name, module in swapped:
        check_restorable(name or "the model", module)
    for _, module in swapped:
        module.__class__ = TORCH_LSTM
    left = [(name, module) for name, module in model.named_modules() if isinstance(module, LSTM)]
    _warn("restore left alone what is not exactly fastlstm.LSTM", left)
    return model


def _warn(what: str, left: list[tuple[str, nn.Module]]) -> None:
    """Name modules with their classes, at the line that called `replace` or `restore`."""
    if left:
        named = [f"{name or 'the model'} ({type(m).__module__}.{type(m).__qualname__})" for name, m in left]
        warnings.warn(f"fastlstm.{what}: {', '.join(named)}", stacklevel=3)


def _is_other_lstm(module: nn.Module) -> bool:
    """A subclass of nn.LSTM, or a quantised or quantisable LSTM of torch.ao."""
    cls = type(module)
    return isinstance(module, TORCH_LSTM) or (cls.__module__.startswith("torch.ao.nn.") and cls.__name__ == "LSTM")
