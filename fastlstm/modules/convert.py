"""Ways in and out: every nn.LSTM of a model becomes a fastlstm.LSTM, and back.

The two classes share their base, their attributes and their parameters, so a swap only changes the class of the module
object. Optimisers, tied weights, hooks and other references to the module stay as they are.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import TypeVar

import torch
from torch import fx, nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM  # also where someone has put ours in the place of torch.nn.LSTM

from fastlstm.modules.lstm import LSTM, NNLSTM, check_restorable

Model = TypeVar("Model", bound=nn.Module)
_OURS = (LSTM, NNLSTM)


def replace(model: Model, *, subclass: bool = False) -> Model:
    """Swap every nn.LSTM in `model` (or `model` itself) for a fastlstm.LSTM, in place; returns the model.

    Other subclasses of nn.LSTM, quantised LSTMs, and LSTMs inside TorchScript and exported programs are left alone, and a
    warning names them.

    Args:
        subclass: swap for fastlstm.NNLSTM, the same as a subclass of nn.LSTM: for code that asks isinstance(m, nn.LSTM).
            torch.compile breaks the graph at it.
    """
    left, made = [], NNLSTM if subclass else LSTM
    for name, module in model.named_modules():
        if type(module) in (TORCH_LSTM, *_OURS):
            module.__class__ = made
        elif is_other_lstm(module) or is_compiled_lstm(module):
            left.append((name, module))
    _warn("replace left alone what is not exactly torch.nn.LSTM", left)
    return model


def restore(model: Model) -> Model:
    """Swap every fastlstm.LSTM and NNLSTM in `model` back for an nn.LSTM, in place; returns the model.

    For ONNX, TorchScript and quantisation. Subclasses of fastlstm.LSTM are left alone, and a warning names them. Raises
    ValueError, before anything is changed, where an option is on that nn.LSTM does not have.
    """
    swapped = [(name, module) for name, module in model.named_modules() if type(module) in _OURS]
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
        warnings.warn(f"fastlstm.{what}: {named(left)}", stacklevel=3)


def named(modules: list[tuple[str, nn.Module]]) -> str:
    """Modules with their classes, for a warning."""
    return ", ".join(f"{name or 'the model'} ({type(m).__module__}.{type(m).__qualname__})" for name, m in modules)


def is_other_lstm(module: nn.Module) -> bool:
    """A subclass of nn.LSTM, or a quantised or quantisable LSTM of torch.ao."""
    cls = type(module)
    return isinstance(module, TORCH_LSTM) or (cls.__module__.startswith("torch.ao.nn.") and cls.__name__ == "LSTM")


def is_compiled_lstm(module: nn.Module) -> bool:
    """An LSTM of TorchScript, or a graph of TorchScript or torch.export in which only torch's lstm function is left of it."""
    if isinstance(module, fx.GraphModule):
        return any(node.op == "call_function" and "aten.lstm" in str(node.target) for node in module.graph.nodes)
    if not isinstance(module, torch.jit.ScriptModule):
        return False
    return module.original_name == "LSTM" or (next(module.children(), None) is None and "aten::lstm" in _script(module))


def _script(module: torch.jit.ScriptModule) -> str:
    """The graph of a TorchScript module's forward; frozen, it is all that is left."""
    with suppress(RuntimeError):  # it has no forward
        return str(module.graph)
    return ""
