"""fastlstm.LSTM in the place of torch.nn.LSTM.

A subclass of torch.nn.RNNBase (not of nn.LSTM: torch.compile breaks the graph on an nn.LSTM), so parameters, their
order, initial draws, state_dict, pickling and messages are torch's own. A call goes one of four ways: `fastlstm.quick`
for a few rows without gradients, `fastlstm.direct` for plain tensors on the CPU, `fastlstm.layers` on the op, or torch's
own LSTM where that is the better choice or where arguments do not fit (it then says what is wrong in its own words).
Source of the method: Hochreiter and Schmidhuber 1997; projection: Sak et al. 2014.
"""

from __future__ import annotations

import warnings
from numbers import Number
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm import calls, direct, layers, quick
from fastlstm.backends.device import own_types
from fastlstm.direct import Order
from fastlstm.layers import Rows, State
from fastlstm.reference import HALF_TYPES
from fastlstm.tokens import TokenLSTM

if TYPE_CHECKING:
    from fastlstm.stream import Stream

__all__ = ["LSTM", "TokenLSTM"]


class LSTM(nn.RNNBase):
    """Multi-layer LSTM with the arguments, parameters and results of torch.nn.LSTM.

    input_size: I; hidden_size: H; num_layers: L; bias; batch_first; dropout between layers (0 to 1); bidirectional;
    proj_size: P < H, 0 for none; device; dtype. Raises what torch.nn.LSTM raises. By keyword only, not in nn.LSTM:

    recompute: keep only h and c for backward and compute the gates again there. Saved for each layer and direction, in
        scalars: T·B·(P + 5H) without, T·B·(P + H) + 4H with it, each and B·(P + H); and each layer's input where it is
        not the h below: T·B·I in the first, T·B·2P above it if bidirectional.
    return_cell_states: also return all c_t; return_gates: also return all gates i, f, g, o, without gradients.
    weight_drop: probability to drop each weight of W_hh (DropConnect), one mask a forward call, in training.
    input_dropout, locked_dropout: dropout on the input and between layers with one mask (B, ·) for all steps.
    """

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
        super().__init__("LSTM", *args, **kwargs)
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
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

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

        input: (T, B, I), (B, T, I) with batch_first, (T, I), or a PackedSequence; hx: (h0, c0), each
        (layers × directions, B, ·) or without B for unbatched input, zero when None.
        reset: bool, shaped as the input without its last dimension; true where a sequence begins anew: the state is
        zero before that step and no gradient passes. return_cell_states, return_gates: as the module says when None.
        Returns output, with H or P features a direction, and (h_n, c_n); then, where asked for, a list with one tensor
        a layer, laid out as output, of cell states (H features a direction), and one of gates (4H: i, f, g, o).
        """
        cells = self.return_cell_states if return_cell_states is None else return_cell_states
        gates = self.return_gates if return_gates is None else return_gates
        extra = reset is not None or cells or gates
        if not torch.compiler.is_compiling():
            found = None if extra else quick.run(self, input, hx) or self._directly(input, hx)
            if found is not None:
                return found
            if isinstance(input, fx.Proxy):
                node = calls.fx_node(self, input, hx, reset, return_cell_states, return_gates)
                if node is not None:
                    return node
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, reset, cells, gates)
        return self._forward_dense(input, hx, reset, cells, gates)

    def _directly(self, input: Tensor | PackedSequence, hx: State | None) -> tuple | None:
        """What forward returns, by the direct way; None where that does not apply."""
        if isinstance(input, PackedSequence):
            x, batch_sizes, order, back = input
            found = direct.run(self, x, Order(batch_sizes, order), hx)
            if found is None:
                return None
            return PackedSequence(found[0], batch_sizes, order, back), self.permute_hidden(found[1:], back)
        if not isinstance(input, Tensor) or input.dim() != 3:
            return None
        found = direct.run(self, self._time_first(input), Order(), hx)
        return None if found is None else (self._time_first(found[0]), found[1:])

    def _forward_dense(self, input: Tensor, hx: State | None, reset: Tensor | None, cells: bool, gates: bool) -> tuple:
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        x = input if batched else input.unsqueeze(batch_dim)
        hx = self._state(x, hx, x.size(batch_dim), batched)
        self.check_forward_args(x, hx, None)
        weights, extra = self._weights(), reset is not None or cells or gates
        own = not extra and calls.have_own_functions(weights)
        if not own:
            calls.check_weights(self, weights)
        given = x, hx, weights
        if not own:
            x, hx, weights = calls.autocast(*given)
        if own:
            found = layers.Results(*layers.whole(self, x, None, hx, weights), [], [])
        elif calls.takes_torch(self, x, None, hx, weights, extra):
            found = calls.by_torch(self, given, (x, hx, weights), None)
        else:
            mask = calls.reset_mask(reset, input.shape[:-1])
            if mask is not None:
                mask = self._time_first(mask if batched else mask.unsqueeze(batch_dim))
            rows = Rows(self._time_first(x))
            with own_types(x):
                found = layers.run(self, rows, hx, weights, reset=mask, cells=cells, gates=gates)
            found = found.shaped(self._time_first)
        return found.as_returned(cells, gates) if batched else found.without_batch(batch_dim).as_returned(cells, gates)

    def _forward_packed(
        self, input: PackedSequence, hx: State | None, reset: Tensor | PackedSequence | None, cells: bool, gates: bool
    ):
        x, batch_sizes, order, back = input
        if hx is None:  # the order of unsorted sequences tells B without reading a number: torch.compile needs that
            hx = self._state(x, None, batch_sizes[0] if order is None else order.shape[0], True)
        else:
            checked = calls.is_state(hx) and not torch.compiler.is_compiling()
            if checked and hx[0].dim() == 3 and hx[0].shape[1] != int(batch_sizes[0]):
                expected = self.get_expected_hidden_size(x, batch_sizes)  # nn.LSTM returns memory that nobody wrote
                self.check_hidden_size(hx[0], expected, "Expected hidden[0] size {}, got {}")
            hx = self.permute_hidden(hx, order)
        weights, extra = self._weights(), reset is not None or cells or gates
        own = not extra and calls.have_own_functions(weights)
        if not own:
            calls.check_weights(self, weights)
        given = x, hx, weights
        if not own:
            x, hx, weights = calls.autocast(*given, packed=True)
        if own:
            found = layers.Results(*layers.whole(self, x, batch_sizes, hx, weights), [], [])
        elif calls.takes_torch(self, x, batch_sizes, hx, weights, extra):
            found = calls.by_torch(self, given, (x, hx, weights), batch_sizes)
        else:
            mask = calls.reset_mask(reset.data if isinstance(reset, PackedSequence) else reset, x.shape[:1])
            with own_types(x):
                found = layers.run(self, Rows.of(x, batch_sizes), hx, weights, reset=mask, cells=cells, gates=gates)
        h_n, c_n = self.permute_hidden((found.h_n, found.c_n), back)
        found = found._replace(h_n=h_n, c_n=c_n).shaped(lambda v: PackedSequence(v, batch_sizes, order, back))
        return found.as_returned(cells, gates)

    def _time_first(self, value: Tensor) -> Tensor:
        """The value with batch and time exchanged if the module is batch_first; the same operation takes it back."""
        return value.transpose(0, 1) if self.batch_first else value

    def _weights(self) -> list[Tensor]:
        """The weights as they are now, in torch's flat order; a parametrised weight is computed here."""
        return [getattr(self, name) for name in self._flat_weights_names]

    def drops(self) -> bool:
        """Whether training draws any mask."""
        return bool(self.dropout or self.weight_drop or self.input_dropout or self.locked_dropout)

    def _state(self, x: Tensor, hx: State | None, B: int | Tensor, batched: bool) -> State:
        """The given state with a batch dimension, or zero."""
        if hx is None:
            n, P = self.num_layers * (2 if self.bidirectional else 1), self.proj_size or self.hidden_size
            kind = {"dtype": x.dtype, "device": x.device}
            c0 = torch.zeros(n, B, self.hidden_size, **kind)
            shared = self.hidden_size == P and x.dtype in HALF_TYPES  # the op casts c0 of a half type: a copy anyway
            return c0 if shared else torch.zeros(n, B, P, **kind), c0
        wanted, word, kind = (3, "batched 3-D", "3-D") if batched else (2, "unbatched 2-D", "2-D")
        if hx[0].dim() != wanted or hx[1].dim() != wanted:
            raise RuntimeError(
                f"For {word} input, hx and cx should also be {kind} but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        return hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))

    def stream(self, batch_size: int = 1, dtype: torch.dtype | None = None) -> Stream:
        """Step by step inference with weights packed once: `s = lstm.stream(B); h = s.step(x)`."""
        from fastlstm.stream import Stream

        return Stream(self, batch_size, dtype)

    @classmethod
    def from_torch(cls, module: nn.LSTM) -> LSTM:
        """A fastlstm.LSTM that shares the parameters of an nn.LSTM."""
        from fastlstm.swap import from_torch

        return from_torch(module, cls)

    def to_torch(self) -> nn.LSTM:
        """An nn.LSTM that shares the parameters; raises ValueError if an option is on that nn.LSTM does not have."""
        from fastlstm.swap import to_torch

        return to_torch(self)

    def extra_repr(self) -> str:
        changed = [f"{name}={getattr(self, name)}" for name in _OWN_OPTIONS if getattr(self, name)]
        return ", ".join([super().extra_repr(), *changed])

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            "fastlstm.LSTM cannot be compiled by torch.jit.script; call fastlstm.restore(model) first, which puts "
            "torch.nn.LSTM back with the same parameters"
        )


_OWN_OPTIONS = ("recompute", "return_cell_states", "return_gates", "weight_drop", "input_dropout", "locked_dropout")


def _is_probability(value: object) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool) and 0 <= value <= 1


def _check_option(name: str, value: object) -> None:
    if isinstance(getattr(LSTM, name), bool):
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    elif not _is_probability(value):
        raise ValueError(f"{name} should be a number in range [0, 1], got {value!r}")
