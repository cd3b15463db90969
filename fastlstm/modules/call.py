"""One module call, turned into a `Call` once: checked, time first, batched, sequences in the order of the rows.

Dense, packed, unbatched and `batch_first` input, and the ids of a TokenLSTM, end here: what runs a call
(`fastlstm.modules.route`) sees one form, and `Call.returned` gives the results the form of the input. The checks of a
module call's arguments are in `checks.py`. What only torch's own LSTM refuses goes there, for it says why in its own words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import dispatch
from fastlstm._torch_compat import has_own_functions, is_plain_but_autocast, is_plain_eager, is_transformed
from fastlstm.memory import plain_check
from fastlstm.modules import checks
from fastlstm.modules.checks import State, Tokens, is_state
from fastlstm.ops.autocast import autocast_type, autocasts, casts
from fastlstm.ops.cell import Stack
from fastlstm.ops.reference import HALF_TYPES

if TYPE_CHECKING:
    from torch import nn


class Masks(NamedTuple):
    """Probabilities of what training drops; all 0 in evaluation."""

    dropout: float = 0.0  # between layers, a mask a step
    weight_drop: float = 0.0  # of W_hh, one mask a call
    input_dropout: float = 0.0  # of the input, one mask for all steps
    locked_dropout: float = 0.0  # between layers, one mask for all steps

    @staticmethod
    def of(lstm: nn.Module) -> Masks:
        """What a module drops in training."""
        return Masks(lstm.dropout, lstm.weight_drop, lstm.input_dropout, lstm.locked_dropout)

    @property
    def unknown_to_torch(self) -> bool:
        """Whether there is a mask that torch's own LSTM does not draw."""
        return bool(self.weight_drop or self.input_dropout or self.locked_dropout)


_NO_MASKS = Masks()


class Results(NamedTuple):
    """What a call gives: the last layer's h, the last states, and per layer all cell states and gates if asked for."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: list[Tensor]
    gates: list[Tensor]

    def shaped(self, change: Callable[[Tensor], Tensor]) -> Results:
        """With `change` applied to everything that has one row a step."""
        if not (self.cells or self.gates):
            return self._replace(output=change(self.output))
        cells, gates = ([change(v) for v in values] for values in (self.cells, self.gates))
        return Results(change(self.output), self.h_n, self.c_n, cells, gates)


class Call(NamedTuple):
    """One call of a module, in the form in which it runs.

    stack: sizes; rows: (T, B, I), or packed (N, I); with tokens the ids, (T, B) or (N,); batch_sizes: (T,), None when
    dense; hx: (h0, c0), each (layers · directions, B, ·); weights: torch's flat list; reset: (T, B) or (N,), or None.
    before_autocast: rows, hx and weights as they were given. fits: nothing observes torch's operations, and all tensors fit
    plainly (modules/checks.py), so that the fused route may take the call; under autocast to bfloat16 its weights may still
    be float32. own_functions: a weight is of a class that answers torch's functions itself. starts_at_zero: no state was given.
    """

    stack: Stack
    rows: Tensor
    tokens: Tokens | None
    batch_sizes: Tensor | None
    hx: State
    weights: list[Tensor]
    reset: Tensor | None = None
    cells: bool = False  # return all cell states
    gates: bool = False  # return all gates
    training: bool = False
    masks: Masks = Masks()
    recompute: bool = False
    before_autocast: tuple[Tensor, State, list[Tensor]] | None = None
    fits: bool = False
    own_functions: bool = False
    batch_first: bool = False
    batched: bool = True
    unsorted_indices: Tensor | None = None  # where each sequence of packed rows came from
    sorted_indices: Tensor | None = None
    starts_at_zero: bool = False

    @property
    def extra(self) -> bool:
        """Whether something is asked for that torch's own LSTM does not have."""
        return self.reset is not None or self.cells or self.gates

    @property
    def needs_layers(self) -> bool:
        """Whether something is to be dropped or computed again, which is done layer by layer."""
        return _needs_layers(self.stack, self.masks, self.recompute)

    @property
    def T(self) -> int:
        return self.rows.shape[0] if self.batch_sizes is None else self.batch_sizes.shape[0]

    @property
    def B(self) -> int:
        return self.hx[0].shape[1]

    def returned(self, results: Results) -> tuple:
        """What the module returns: output and state in the form of the input, then what else was asked for."""
        h_n, c_n = results.h_n, results.c_n
        if self.batch_sizes is not None:
            order = self.batch_sizes, self.sorted_indices, self.unsorted_indices
            results = results.shaped(lambda v: PackedSequence(v, *order))
            h_n, c_n = permuted((h_n, c_n), self.unsorted_indices)
        elif not self.batched:
            results = results.shaped(lambda v: v.squeeze(1))
            h_n, c_n = h_n.squeeze(1), c_n.squeeze(1)
        elif self.batch_first:
            results = results.shaped(lambda v: v.transpose(0, 1))
        return results.output, (h_n, c_n), *[results.cells] * bool(self.cells), *[results.gates] * bool(self.gates)


def normalise(
    lstm: nn.RNNBase,
    input: Tensor | PackedSequence,
    hx: State | None = None,
    reset: Tensor | PackedSequence | None = None,
    cells: bool = False,
    gates: bool = False,
    tokens: Tokens | None = None,
) -> Call:
    """Check a module call and bring it into one form.

    Args:
        lstm: an LSTM. input, hx, reset: as `LSTM.forward` takes them; with tokens, input holds ids.
        cells, gates: whether all cell states and all gates are to be returned.

    Raises:
        TypeError, ValueError, RuntimeError: where sizes or types do not fit, in torch's words where torch has some.
    """
    packed = isinstance(input, PackedSequence)
    data, batch_sizes, order, back = input if packed else (input, None, None, None)
    batched = packed or checks.is_batched(data, tokens)
    compiling = torch.compiler.is_compiling()
    eager = not compiling and is_plain_eager()
    ordinary = eager or not (compiling or is_transformed())  # tensors have the memory that they seem to have
    stack, weights = Stack.of(lstm, cached=eager), lstm._weights()
    like = weights[1] if tokens else data
    if packed:
        if ordinary:
            orders = {"sorted_indices": order, "unsorted_indices": back}
            checks.check_given(hx, data=data, batch_sizes=batch_sizes, **orders)
            checks.check_order_devices(data, **orders)
        rows, B = data, checks.packed_sequences(data, batch_sizes) if eager else 0
        hx = None if hx is None else _packed_state(lstm, stack, hx, batch_sizes, order, tokens)
    else:
        rows = _time_first(data, batched, lstm.batch_first)
        B, hx = rows.size(1), None if hx is None else checks.with_batch(hx, batched)
    masks, extra = Masks.of(lstm) if lstm.training else _NO_MASKS, reset is not None or cells or gates
    fits, dtype = eager and checks.fits_plainly(stack, rows, tokens, B, packed, hx, weights), like.dtype
    if not (eager or compiling or packed or extra or _needs_layers(stack, masks, lstm.recompute)):
        cast = _autocast_rows(stack, rows, tokens, B, hx, weights)
        if cast is not None:
            fits, dtype, (rows, hx) = True, torch.bfloat16, cast
    starts_at_zero = hx is None
    if starts_at_zero:  # one tensor for both where autograd keeps nothing
        if packed and ordinary and not fits:
            checks.check_first_size(rows, batch_sizes)
        B = B if fits or not packed else _sequences(batch_sizes, order)
        hx = zero_state(stack, B, like, dtype, shared=fits and not torch.is_grad_enabled())
    if not packed and not (fits and type(lstm) is lstm._exact_class):
        checks.check_dense(lstm, stack, data, batched, hx, tokens)
    mask = None if reset is None else checks.reset_mask(reset, data, packed, tokens)
    if mask is not None and not packed:
        mask = _time_first(mask, batched, lstm.batch_first)
    own_functions = not (fits or compiling or extra) and any(map(has_own_functions, weights))
    before = None
    if ordinary and not fits:
        checks.check_memory(lstm, weights, hx, input=data, reset=mask)
    if not (fits or own_functions):
        checks.check_weights(lstm, stack, weights)
        if casts(like, packed):
            before = (rows, hx, weights)
            rows, hx, weights = _autocast(*before)
    drops = (lstm.training, masks, lstm.recompute)
    how = (before, fits, own_functions, lstm.batch_first, batched, back, order, starts_at_zero)
    return Call(stack, rows, tokens, batch_sizes, hx, weights, mask, bool(cells), bool(gates), *drops, *how)


def _time_first(value: Tensor, batched: bool, batch_first: bool) -> Tensor:
    """A value with one row a step, laid out as the module's input, as (T, B, …)."""
    if not batched:
        return value.unsqueeze(1)
    return value.transpose(0, 1) if batch_first else value


def _packed_state(
    lstm: nn.RNNBase, stack: Stack, hx: State, batch_sizes: Tensor, order: Tensor | None, tokens: Tokens | None
) -> State:
    """The given state of a packed call, in the order of its rows."""
    checks.check_packed_state(lstm, stack, hx, batch_sizes, tokens)
    checks.check_order(order, batch_sizes)
    return lstm.permute_hidden(hx, order)


def _sequences(batch_sizes: Tensor, order: Tensor | None) -> int | Tensor:
    """B of packed rows; the order of unsorted sequences tells it without reading a number: torch.compile needs that."""
    if order is None or not torch.compiler.is_compiling():
        return batch_sizes[0]
    return order.shape[0]


def zero_state(
    stack: Stack, B: int | Tensor, like: Tensor, dtype: torch.dtype | None = None, shared: bool = False
) -> State:
    """A state of zeros on the device of `like`, of its type if no dtype is given; shared: h0 and c0 may be one tensor."""
    options = {"dtype": dtype or like.dtype, "device": like.device}
    h_shape, c_shape = stack.state_shapes(B)
    c0 = torch.zeros(c_shape, **options)
    shared = shared or options["dtype"] in HALF_TYPES  # the op casts c0 of a half type: a copy anyway
    return c0 if shared and h_shape == c_shape else torch.zeros(h_shape, **options), c0


def permuted(hx: State, permutation: Tensor | None) -> State:
    """The state with its sequences reordered."""
    if permutation is None:
        return hx
    return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)


def _needs_layers(stack: Stack, masks: Masks, recompute: bool) -> bool:
    """`Call.needs_layers`, before there is a Call."""
    drops = masks.unknown_to_torch or (masks.dropout and stack.layers > 1)
    return bool(drops or (recompute and torch.is_grad_enabled()))


def _autocast_rows(
    stack: Stack, rows: Tensor, tokens: Tokens | None, B: int, hx: State | None, weights: list[Tensor]
) -> tuple[Tensor, State | None] | None:
    """Rows and state as bfloat16, where the kernels round float32 weights to bfloat16 themselves as they pack them; or None.

    That is under CPU autocast to bfloat16 on the fused route. Ids stay as they are.
    """
    like, dtype, is_plain = weights[1] if tokens else rows, torch.bfloat16, plain_check()
    if not (like.is_cpu and autocasts(like) and is_plain_but_autocast() and _becomes(like, dtype)):
        return None
    if dispatch.requested_backend() not in (None, "cpu") or not (hx is None or is_state(hx)):
        return None
    states = () if hx is None else tuple(hx)
    if not all(is_plain(v) for v in (rows, *states)) or not all(v.is_cpu and _becomes(v, dtype) for v in states):
        return None  # before anything is read: a storage may be too short
    rows = rows if tokens else rows.to(dtype)
    hx = None if hx is None else (hx[0].to(dtype), hx[1].to(dtype))
    return (rows, hx) if checks.fits_plainly(stack, rows, tokens, B, False, hx, weights, dtype) else None


def _becomes(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether autocast gives a real tensor this type."""
    return value.dtype.is_floating_point and autocast_type(value) == dtype


def _autocast(rows: Tensor, hx: State, weights: list[Tensor]) -> tuple[Tensor, State, list[Tensor]]:
    """Everything in the type that autocast gives it; what is no state is left for torch to refuse."""
    if is_state(hx):
        hx = hx[0].to(autocast_type(hx[0])), hx[1].to(autocast_type(hx[1]))
    return rows.to(autocast_type(rows)), hx, [w.to(autocast_type(w)) for w in weights]
