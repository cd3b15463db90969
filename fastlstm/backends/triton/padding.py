"""Padding of the op's tensors for the Triton kernels: H and P to multiples of 16, memory to 16 bytes; torch only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip
from fastlstm.memory import is_aligned

ALIGNMENT = 16


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def pad_units(tensor: Tensor | None, size: int) -> Tensor | None:
    """(…, H) to (…, size) with zeros; contiguous, on a 16-byte address."""
    if tensor is None:
        return None
    if tensor.shape[-1] < size:
        return F.pad(tensor, (0, size - tensor.shape[-1]))
    tensor = tensor.contiguous()
    return tensor if is_aligned(tensor, ALIGNMENT) else tensor.clone()


def pad_gates(tensor: Tensor | None, size: int) -> Tensor | None:
    """(…, 4H) to (…, 4 size), every gate padded by itself."""
    if tensor is None or tensor.shape[-1] == 4 * size:
        return pad_units(tensor, 0)
    return pad_units(tensor.unflatten(-1, (4, -1)), size).flatten(-2)


def pad_gate_rows(tensor: Tensor, size: int) -> Tensor:
    """(4H, K) to (4 size, K)."""
    if tensor.shape[0] == 4 * size:
        return pad_units(tensor, 0)
    return F.pad(tensor.unflatten(0, (4, -1)), (0, 0, 0, size - tensor.shape[0] // 4)).flatten(0, 1)


def to_tf32(x: Tensor) -> Tensor:
    """float32 to the nearest number of TF32's 10 bits, ties away from zero, as float32; NaN stays NaN."""
    rounded = (x.view(torch.int32) + 0x1000).bitwise_and_(-0x2000).view(torch.float32)
    return torch.where(x.isnan(), x, rounded)


def cut_units(tensor: Tensor, size: int) -> Tensor:
    return tensor if tensor.shape[-1] in (0, size) else tensor[..., :size].contiguous()


def cut_gates(tensor: Tensor, size: int) -> Tensor:
    if tensor.shape[-1] in (0, 4 * size):
        return tensor
    return tensor.unflatten(-1, (4, -1))[..., :size].flatten(-2)


dynamo_skip(__name__)
