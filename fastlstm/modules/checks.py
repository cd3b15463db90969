"""Every check of a module call's arguments.

`fits_plainly` answers for the usual call, in one pass: plain tensors on the CPU whose sizes belong together. Where it is
false, the other functions raise, with torch's words where torch has some, or leave it to the op's checks.
"""

from __future__ import annotations

from operator import ge
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends.cpu.backend import is_native
from fastlstm.memory import check_whole, plain_check
from fastlstm.ops.cell import Stack
from fastlstm.ops.gemm import REALS

if TYPE_CHECKING:
    from torch import nn

State = tuple[Tensor, Tensor]


class Tokens(NamedTuple):
    """What makes a call one on ids. V: number of ids; embedding: (V, I), None for one-hot ids (I = V)."""

    V: int
    embedding: Tensor | None


def is_state(hx: object) -> bool:
    """Whether it is a pair of tensors."""
    return isinstance(hx, (tuple, list)) and len(hx) == 2 and isinstance(hx[0], Tensor) and isinstance(hx[1], Tensor)


@dynamo_skip
def fits_plainly(
    stack: Stack,
    rows: Tensor,
    tokens: Tokens | None,
    B: int,
    packed: bool,
    hx: State | None,
    weights: list[Tensor],
    dtype: torch.dtype | None = None,
) -> bool:
    """Whether all tensors of a call are plain CPU tensors of one native type whose sizes belong together; there are rows.

    B: sequences, as `packed_sequences` says when packed. hx: None where a state of zeros will be made. dtype: of rows and
    state; None: the weights' own; bfloat16 also where these are float32. The fused route hands their addresses to kernels
    after this and no other check: whatever those rely on is looked at here.
    """
    shapes, is_plain, of_weights = stack.weight_shapes, plain_check(), weights[0].dtype if weights else None
    dtype = dtype or of_weights
    if (
        len(weights) != len(shapes)
        or not (dtype in REALS or is_native(dtype))
        or not (rows.is_cpu and is_plain(rows))
        or not (B and rows.numel())
    ):
        return False
    if rows.dim() != (1 if packed else 2) + (tokens is None) or not (hx is None or _state_fits(stack, hx, B, dtype)):
        return False
    if of_weights != dtype and (of_weights, dtype) != (torch.float32, torch.bfloat16):
        return False
    for weight, shape in zip(weights, shapes, strict=True):
        if not (is_plain(weight) and weight.dtype == of_weights and weight.shape == shape and weight.is_contiguous()):
            return False
    if tokens is not None:
        return rows.dtype == torch.int64 and _embedding_fits(stack, tokens, of_weights)
    return rows.dtype == dtype and rows.shape[-1] == stack.input_size


def _state_fits(stack: Stack, hx: State, B: int, dtype: torch.dtype) -> bool:
    if not is_state(hx):
        return False
    (h0, c0), is_plain = hx, plain_check()
    if not (is_plain(h0) and is_plain(c0)) or h0.dtype != dtype or c0.dtype != dtype:
        return False
    return (h0.shape, c0.shape) == stack.state_shapes(B)


@dynamo_skip
def packed_sequences(rows: Tensor, batch_sizes: Tensor) -> int:
    """The number of sequences of packed rows; 0 where batch_sizes is not what packing makes: the op says what is wrong."""
    if not rows.is_cpu or not (rows.dtype in (*REALS, torch.int64) or is_native(rows.dtype)):
        return 0  # not for the fused route: the sizes are not read, which takes long where there are many steps
    if not plain_check()(batch_sizes) or batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1:
        return 0
    sizes = batch_sizes.tolist()
    falling = sizes and sizes[-1] > 0 and rows.shape[:1] == (sum(sizes),) and all(map(ge, sizes, sizes[1:]))
    return sizes[0] if falling else 0


def _embedding_fits(stack: Stack, tokens: Tokens, dtype: torch.dtype) -> bool:
    embedding, sizes = tokens.embedding, (tokens.V, stack.input_size)
    if embedding is None:
        return stack.input_size == tokens.V
    if not plain_check()(embedding) or embedding.dtype != dtype or embedding.shape != sizes:
        return False
    return embedding.is_contiguous()


@dynamo_skip
def check_memory(lstm: nn.RNNBase, weights: list[Tensor], hx: State | None, **others: Tensor | None) -> None:
    """Raise where a tensor of a call is larger than its storage. others: by name."""
    check_given(hx, **others)
    check_whole(*zip(lstm._flat_weights_names, weights, strict=False))


@dynamo_skip
def check_given(hx: State | None, **others: Tensor | None) -> None:
    """`check_memory` of what a call was given, without weights."""
    states = zip(("h0", "c0"), hx, strict=True) if is_state(hx) else ()
    check_whole(*others.items(), *states)


def is_batched(data: Tensor, tokens: Tokens | None) -> bool:
    """Whether dense input has a batch dimension; raises where it has another number of dimensions."""
    if tokens is None:
        if data.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {data.dim()}D instead")
        return data.dim() == 3
    if data.dim() not in (1, 2):
        raise ValueError(f"TokenLSTM: Expected ids to be 1D or 2D, got {data.dim()}D instead")
    return data.dim() == 2


def with_batch(hx: State, batched: bool) -> State:
    """A given state with a batch dimension."""
    dims, words, dimension = (3, "batched 3-D", "3-D") if batched else (2, "unbatched 2-D", "2-D")
    if hx[0].dim() != dims or hx[1].dim() != dims:
        raise RuntimeError(
            f"For {words} input, hx and cx should also be {dimension} but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    return hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))


def check_dense(lstm: nn.RNNBase, stack: Stack, data: Tensor, batched: bool, hx: State, tokens: Tokens | None) -> None:
    """Raise where input or state of a dense call do not fit, for vectors by torch's own checks."""
    batch_dim = 0 if lstm.batch_first else 1
    batched_data = data if batched else data.unsqueeze(batch_dim)  # as torch's checks know it
    if tokens is None:
        lstm.check_forward_args(batched_data, hx, None)
        return
    if batched_data.shape[1 - batch_dim] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    check_state_sizes(lstm, stack, hx, batched_data.shape[batch_dim])


def check_packed_state(lstm: nn.RNNBase, stack: Stack, hx: State, batch_sizes: Tensor, tokens: Tokens | None) -> None:
    """Raise where a given state of a packed call is one of other sequences."""
    if tokens is not None:
        check_state_sizes(lstm, stack, with_batch(hx, True), int(batch_sizes[0]))
    elif is_state(hx) and not torch.compiler.is_compiling() and hx[0].dim() == 3:
        check_state_sizes(lstm, stack, hx, int(batch_sizes[0]))  # nn.LSTM reads behind one that is too small


def check_first_size(rows: Tensor, batch_sizes: Tensor) -> None:
    """Raise where the state of a packed call would have more sequences than there are rows, and take any amount of memory."""
    if torch.jit.is_tracing() or batch_sizes.is_meta or batch_sizes.numel() == 0:
        return
    B = int(batch_sizes.reshape(-1)[0])
    if not 0 <= B <= rows.shape[0]:
        raise RuntimeError(
            f"batch_sizes begins with {B}, expected a number of sequences up to that of {rows.shape[0]} rows"
        )


def check_order(order: Tensor | None, batch_sizes: Tensor) -> None:
    """Raise where the order of a packed call's sequences is not one of all of them: the state would be of others."""
    if order is None or torch.compiler.is_compiling():
        return
    B = int(batch_sizes[0])
    if order.shape != (B,):
        raise RuntimeError(
            f"sorted_indices has shape {list(order.shape)}, expected [{B}], one for each sequence packed"
        )


def check_order_devices(data: Tensor, **orders: Tensor | None) -> None:
    """Raise where an order is not where the packed rows are: with one on meta, torch gives memory that nobody wrote."""
    for name, order in orders.items():
        if order is not None and order.device != data.device:
            raise RuntimeError(f"{name} is on {order.device}, expected {data.device} as the packed rows")


def check_state_sizes(lstm: nn.RNNBase, stack: Stack, hx: State, B: int) -> None:
    for k, shape in enumerate(stack.state_shapes(B)):
        lstm.check_hidden_size(hx[k], shape, f"Expected hidden[{k}] size {{}}, got {{}}")


def check_weights(lstm: nn.RNNBase, stack: Stack, weights: list[Tensor]) -> None:
    """Raise RuntimeError where a weight has been given a size that the module's sizes do not imply.

    nn.LSTM does not check, and may read memory behind a small one.
    """
    if torch.jit.is_tracing():
        return  # sizes are tensors there
    for k, (weight, shape) in enumerate(zip(weights, stack.weight_shapes, strict=False)):
        if weight is not None and weight.shape != shape:
            name = lstm._flat_weights_names[k]
            raise RuntimeError(f"{name} has shape {list(weight.shape)}, expected {list(shape)}")


def reset_mask(reset: Tensor | PackedSequence, data: Tensor, packed: bool, tokens: Tokens | None) -> Tensor:
    """The reset mask as given; raises where its shape or type is wrong."""
    mask = reset.data if isinstance(reset, PackedSequence) else reset
    shape = data.shape[:1] if packed else data.shape if tokens else data.shape[:-1]
    if mask.shape != shape or mask.dtype != torch.bool:
        raise RuntimeError(
            f"reset is {mask.dtype} with shape {list(mask.shape)}, expected torch.bool with shape {list(shape)}: "
            "the input's, without the last dimension"
        )
    return mask
