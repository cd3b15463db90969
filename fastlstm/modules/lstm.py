"""fastlstm.LSTM in the place of torch.nn.LSTM.

LSTM     a subclass of torch.nn.RNNBase, not of nn.LSTM: torch.compile breaks the graph on an nn.LSTM
NNLSTM   the same as a subclass of nn.LSTM, for code that asks isinstance(m, nn.LSTM)

Parameters, their order, initial draws, state_dict, pickling and messages are torch's own. `forward` turns its arguments into
a `Call` (modules/call.py) and runs it on its route (modules/route.py).
Source of the method: Hochreiter and Schmidhuber 1997; projection: Sak et al. 2014.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from numbers import Number
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM  # also where someone has put ours in the place of torch.nn.LSTM
from torch.nn.utils.rnn import PackedSequence

from fastlstm import dispatch
from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends.cpu import small_call
from fastlstm.modules.call import Masks, State, normalise, permuted
from fastlstm.modules.route import RUN, TORCH, route
from fastlstm.modules.stream import Stream

__all__ = ["LSTM", "NNLSTM"]


class LSTM(nn.RNNBase):
    """Multi-layer LSTM with the arguments, parameters and results of torch.nn.LSTM.

    Args:
        input_size: I. hidden_size: H. num_layers: L. bias, batch_first, bidirectional: as in nn.LSTM.
        dropout: between layers, 0 to 1. proj_size: P < H, 0 for no projection. device, dtype: of the parameters.

    By keyword only, not in nn.LSTM:
        recompute: backward keeps only h and c and computes the gates again (memory: docs/performance.md).
        return_cell_states: also return all c_t.
        return_gates: also return all gates i, f, g, o, without gradients.
        weight_drop: probability to drop each weight of W_hh (DropConnect), one mask a forward call, in training.
        input_dropout, locked_dropout: dropout on the input and between layers, one mask (B, ·) for all steps.

    Raises:
        What torch.nn.LSTM raises; TypeError or ValueError for an option of the second list.
    """

    drop_options: ClassVar[tuple[str, ...]] = Masks._fields  # what training may drop; small calls ask them all
    _exact_class: ClassVar[type]  # this class; a subclass may have its own idea of a check
    recompute = False
    return_cell_states = False
    return_gates = False
    weight_drop = 0.0
    input_dropout = 0.0
    locked_dropout = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in _OWN_OPTIONS if name in kwargs}
        dropout = args[5] if len(args) > 5 else kwargs.get("dropout", 0.0)
        num_layers = args[2] if len(args) > 2 else kwargs.get("num_layers", 1)
        alone = num_layers == 1 and _is_probability(dropout) and dropout > 0
        if alone:  # torch's words, but at the line that made the module; RNNBase would blame this one
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
            args, kwargs = (*args[:5], 0.0, *args[6:]) if len(args) > 5 else args, {**kwargs}
            if len(args) <= 5:
                kwargs["dropout"] = 0.0
        nn.RNNBase.__init__(self, "LSTM", *args, **kwargs)  # by name: in an NNLSTM nn.LSTM would be next
        if alone:
            self.dropout = float(dropout)
        for name, value in own.items():
            _check_option(name, value)
            setattr(self, name, value)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Return the (layers × directions, B, H) that c0 must have."""
        B = int(batch_sizes[0]) if batch_sizes is not None else input.size(0 if self.batch_first else 1)
        return self.num_layers * (2 if self.bidirectional else 1), B, self.hidden_size

    def check_forward_args(self, input: Tensor, hidden: State, batch_sizes: Tensor | None) -> None:
        """Raise RuntimeError or ValueError where sizes or type of input or state do not fit."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def permute_hidden(self, hx: State, permutation: Tensor | None) -> State:
        """Return the state with its batch dimension reordered."""
        return permuted(hx, permutation)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        reset: Tensor | PackedSequence | None = None,
        return_cell_states: bool | None = None,
        return_gates: bool | None = None,
    ):
        """Run the layers.

        Args:
            input: (T, B, I), (B, T, I) with batch_first, (T, I), or a PackedSequence.
            hx: (h0, c0), each (layers · directions, B, ·), without B for unbatched input; None: zero.
            reset: bool, shaped as the input without its last dimension; true where a sequence begins anew: the state is
                zero before that step and no gradient passes.
            return_cell_states, return_gates: None: as the module says.

        Returns:
            output, with H or P features a direction, and (h_n, c_n); then, where asked for, a list with one tensor a
            layer, laid out as output, of cell states (H features a direction), and one of gates (4H: i, f, g, o).
        """
        cells = self.return_cell_states if return_cell_states is None else return_cell_states
        gates = self.return_gates if return_gates is None else return_gates
        if not torch.compiler.is_compiling():
            if reset is None and not (cells or gates):
                out = self._small_call(input, hx)
                if out is not None:
                    return out
            if isinstance(input, fx.Proxy):
                node = _fx_node(self, input, hx, reset, return_cell_states, return_gates)
                if node is not None:
                    return node
        call = normalise(self, input, hx, reset, cells, gates)
        chosen = route(call)
        if chosen == TORCH and not torch.compiler.is_compiling():
            self._update_flat_weights()
        return call.returned(RUN[chosen](call))

    @dynamo_skip
    def _small_call(self, input: Tensor | PackedSequence, hx: State | None) -> tuple | None:
        """The fast path for few rows without gradients, in one native call; None where it does not apply."""
        run_small = _run_small()
        return None if run_small is None else run_small(self, input, hx)

    def _weights(self) -> list[Tensor]:
        """The weights as they are now, in torch's flat order; a parametrised weight is computed here."""
        if torch.compiler.is_compiling():
            return [getattr(self, name) for name in self._flat_weights_names]
        own = self._parameters  # a tenth of getattr's time
        return [getattr(self, name) if own.get(name) is None else own[name] for name in self._flat_weights_names]

    def stream(self, batch_size: int = 1, dtype: torch.dtype | None = None) -> Stream:
        """Step by step inference with weights packed once: `s = lstm.stream(B); h = s.step(x)`."""
        return Stream(self, batch_size, dtype)

    @property
    def qconfig(self) -> object:
        """What torch.ao.quantization asks of this module."""
        if "qconfig" in self.__dict__:
            return self.__dict__["qconfig"]
        raise AttributeError("qconfig")

    @qconfig.setter
    def qconfig(self, value: object) -> None:
        """torch.ao.quantization sets it on every module of a model, and converts those of exactly torch's classes."""
        warnings.warn(
            f"torch.ao.quantization leaves {type(self).__name__} modules of fastlstm in floating point; to quantise them too, "
            "call fastlstm.restore(model) first, or fastlstm.quantize(model) instead",
            stacklevel=2,
        )
        self.__dict__["qconfig"] = value

    @qconfig.deleter
    def qconfig(self) -> None:
        del self.__dict__["qconfig"]

    @classmethod
    def from_torch(cls, module: nn.LSTM) -> LSTM:
        """A fastlstm.LSTM that shares the parameters and the mode of an nn.LSTM."""
        if type(module) is not TORCH_LSTM:
            raise TypeError(f"module is a {type(module).__name__}, expected torch.nn.LSTM")
        return _sharing(module, cls)

    def to_torch(self) -> nn.LSTM:
        """An nn.LSTM that shares the parameters and the mode; raises ValueError if an option is on that nn.LSTM lacks."""
        check_restorable("the module", self)
        return _sharing(self, TORCH_LSTM)

    def extra_repr(self) -> str:
        changed = [f"{name}={getattr(self, name)}" for name in _OWN_OPTIONS if getattr(self, name)]
        return ", ".join([super().extra_repr(), *changed])

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            "fastlstm.LSTM cannot be compiled by torch.jit.script; call fastlstm.restore(model) first, which puts "
            "torch.nn.LSTM back with the same parameters"
        )


LSTM._exact_class = LSTM


class NNLSTM(LSTM, TORCH_LSTM):
    """A fastlstm.LSTM that is an instance of torch.nn.LSTM too, for code that asks isinstance(module, nn.LSTM).

    Arguments, results, kernels and errors are those of fastlstm.LSTM. torch.compile breaks the graph at it, as at any nn.LSTM,
    unless Dynamo's option `allow_rnn` is on.
    """

    @dynamo_skip
    def _small_call(self, input: Tensor | PackedSequence, hx: State | None) -> tuple | None:
        run_small = _run_small()
        if run_small is None or type(self) is not NNLSTM:
            return None
        same = object.__new__(LSTM)  # the native call takes modules of exactly this class: one on the same attributes
        object.__setattr__(same, "__dict__", self.__dict__)
        return run_small(same, input, hx)


NNLSTM._exact_class = NNLSTM


@cache
def _run_small() -> Callable | None:
    return small_call.prepared(LSTM, dispatch.requested_name, dispatch.last_call)


_OWN_OPTIONS = ("recompute", "return_cell_states", "return_gates", "weight_drop", "input_dropout", "locked_dropout")


def _is_probability(value: object) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool) and 0 <= value <= 1


def _check_option(name: str, value: object) -> None:
    if isinstance(getattr(LSTM, name), bool):
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    elif not _is_probability(value):
        raise ValueError(f"{name} should be a number in range [0, 1], got {value!r}")


def check_restorable(name: str, module: LSTM) -> None:
    """Raise ValueError where an option is on that torch.nn.LSTM does not have."""
    on = [option for option in _OWN_OPTIONS if option != "recompute" and getattr(module, option)]
    if on:
        raise ValueError(f"{name} uses {', '.join(on)}, which torch.nn.LSTM does not have; turn it off first")


def _sharing(module: nn.RNNBase, cls: type) -> nn.RNNBase:
    """A module of class `cls` with the same attributes, parameters and hooks; containers are its own."""
    made = cls.__new__(cls)
    own = {k: v.copy() if isinstance(v, (dict, list, set)) else v for k, v in module.__dict__.items()}
    made.__dict__.update(own)
    return made


def _fx_node(lstm: LSTM, input: fx.Proxy, hx: object, *options: object) -> fx.Proxy | None:
    """One node for the whole module, as torch.fx makes for the modules of torch.nn; None where it is traced itself."""
    path = input.tracer.path_of_module(lstm)
    extra = dict(zip(("reset", "return_cell_states", "return_gates"), options, strict=True))
    kwargs = {name: value for name, value in extra.items() if value is not None}
    args = (input,) if hx is None else (input, hx)
    return input.tracer.create_proxy("call_module", path, args, kwargs) if path else None
