"""FLOPs of the ops for torch.utils.flop_counter.FlopCounterMode: products only, 2·M·N·K each, as torch counts nn.LSTM.

    lstm_forward     per row x W_ihᵀ and h W_hhᵀ, with a projection also h W_hrᵀ
    lstm_backward    per row d_gates W_hh, with a projection also dh W_hr; weights and x: torch's own mm, counted by torch
    sum_by_id        none: it adds. The table of a TokenLSTM is a product of torch's (2·V·E·4H); looking a row up is none.

A FlopCounterMode copies torch's registry when it is made, and importing torch.utils.flop_counter imports Triton (0.2 s), so the
formulas are not registered at import: a counter that is active gets them when an op is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from fastlstm._torch_compat import dynamo_skip, flop_registries, is_plain
from fastlstm.ops.arguments import SAVE_CELLS, OpInputs

_again: ContextVar[bool] = ContextVar("fastlstm_flops_again", default=False)


@contextmanager
def counted_before() -> Iterator[None]:
    """In this block `lstm_forward` counts nothing: backward repeats a forward pass only to have torch differentiate it."""
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)


def _forward(*args: object, out_val: object = None, **kwargs: object) -> int:
    return 0 if _again.get() else _cells(OpInputs(*args, **kwargs))


def _cells(inputs: OpInputs) -> int:
    """All cells of a call, forward."""
    rows, (gates, P), I = _rows(inputs), inputs.w_hh.shape, 0 if inputs.ids is not None else inputs.w_x.shape[1]
    return 2 * rows * gates * (I + P) + _projection(inputs, rows)


def _backward(*args: object, out_val: object = None, **kwargs: object) -> int:
    inputs = OpInputs(*args[4:-3], **kwargs)
    rows, (gates, P) = _rows(inputs), inputs.w_hh.shape
    before = rows - (0 if inputs.h0.requires_grad else _first_rows(inputs))
    again = _cells(inputs) - _projection(inputs, rows) if inputs.save == SAVE_CELLS else 0
    return 2 * before * gates * P + _projection(inputs, rows) + again


def _rows(inputs: OpInputs) -> int:
    return inputs.lead.numel()


def _projection(inputs: OpInputs, rows: int) -> int:
    return 0 if inputs.w_hr is None else 2 * rows * inputs.w_hr.numel()


def _first_rows(inputs: OpInputs) -> int:
    """Rows of the step that reads h0 alone; nn.LSTM does not multiply its gradient where h0 needs none."""
    sizes = inputs.batch_sizes
    if sizes is not None and inputs.reverse and is_plain(sizes):
        return int(sizes[-1])
    return inputs.h0.shape[0]


def _none(*args: object, out_val: object = None, **kwargs: object) -> int:
    return 0


def register_with_active_counters() -> None:
    """Give the formulas to every FlopCounterMode that is active now; its own `custom_mapping` goes before."""
    for registry in flop_registries():
        for name, formula in (("lstm_forward", _forward), ("lstm_backward", _backward), ("sum_by_id", _none)):
            registry.setdefault(getattr(torch.ops.fastlstm, name), formula)


dynamo_skip(__name__)
