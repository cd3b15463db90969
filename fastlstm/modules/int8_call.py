"""Every check of an Int8LSTM's call, and the form in which its layers run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm._torch_compat import describe_object, dynamo_skip
from fastlstm.memory import check_whole
from fastlstm.modules import checks
from fastlstm.modules.call import Call, permuted, zero_state
from fastlstm.modules.checks import State, Tokens
from fastlstm.ops import int8
from fastlstm.ops.cell import Stack
from fastlstm.ops.reference import HALF_TYPES


def int8_call(lstm: nn.Module, input: Tensor | PackedSequence, hx: State | None, tokens: Tokens | None) -> Call:
    """Check a call and bring it into the form in which layers run: time first, batched, in the order of the rows."""
    packed = isinstance(input, PackedSequence)
    data, batch_sizes, order, back = input if packed else (input, None, None, None)
    stack, name = Stack.of(lstm, cached=True), "Int8LSTM" if tokens is None else "TokenLSTM"
    if not isinstance(data, Tensor):
        raise TypeError(f"input is a {type(data).__name__}, expected a tensor or a PackedSequence")
    checks.check_given(hx, input=data, batch_sizes=batch_sizes, sorted_indices=order)
    batched = packed or checks.is_batched(data, tokens)
    expected = torch.float32 if tokens is None else torch.int64
    like = lstm.weight_ih_l0
    if tokens is not None:
        int8.check_embedding(*tokens, lstm.weights()[0])
        check_whole(("embedding.weight", tokens.embedding))
    elif data.dtype in HALF_TYPES and torch.is_autocast_enabled(data.device.type):
        data, hx = data.float(), _as_float(hx)
    if data.dtype != expected or data.device != like.device:
        raise ValueError(
            f"{name}: input is {data.dtype} on {data.device}, expected {expected} on {like.device}: int8 modules take "
            "and give float32; cast the input, or move the module with .to(device)"
        )
    if tokens is None and (data.dim() != (2 if packed else 2 + batched) or data.shape[-1] != stack.input_size):
        raise ValueError(f"{name}: input has shape {list(data.shape)}, expected {stack.input_size} features last")
    if packed:
        rows, B = data, checks.packed_sequences(data.cpu() if tokens else data.detach().cpu(), batch_sizes)
        if B == 0:
            raise ValueError(
                f"{name}: batch_sizes do not fall from the number of sequences to the last step, or do not sum to the "
                f"{data.shape[0]} rows; make the sequence with torch.nn.utils.rnn.pack_padded_sequence"
            )
        checks.check_order_devices(data, sorted_indices=order)
    else:
        rows = data if batched else data.unsqueeze(1)
        rows = rows.transpose(0, 1) if batched and lstm.batch_first else rows
        B = rows.shape[1]
        if rows.shape[0] == 0:
            raise ValueError(f"{name}: input has no steps, expected at least one")
    if hx is None:
        hx = zero_state(stack, B, like, torch.float32)
    else:
        hx = _state(stack, hx, batched, B, like.device)
        if order is not None:
            checks.check_order(order, batch_sizes)
            hx = permuted(hx, order)
    how = {"batch_first": lstm.batch_first, "batched": batched, "sorted_indices": order, "unsorted_indices": back}
    return Call(stack, rows, tokens, batch_sizes, hx, [], **how)


def _as_float(hx: State | None) -> State | None:
    """A state in float32, as autocast has it; what is no state is left for `_state` to refuse."""
    return tuple(v.float() if v.dtype in HALF_TYPES else v for v in hx) if checks.is_state(hx) else hx


def _state(stack: Stack, hx: State, batched: bool, B: int, device: torch.device) -> State:
    if not checks.is_state(hx):
        raise TypeError(f"hx is a {type(hx).__name__}, expected a pair of tensors (h0, c0)")
    hx = checks.with_batch(hx, batched)
    for name, value, shape in zip(("h0", "c0"), hx, stack.state_shapes(B), strict=True):
        if value.shape != shape or value.dtype != torch.float32 or value.device != device:
            raise ValueError(
                f"{name} is {describe_object(value)}, expected float32 with shape {list(shape)} on {device}"
            )
    return hx


dynamo_skip(__name__)
