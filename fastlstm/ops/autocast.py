"""What autocast does to a call: the type that torch's own LSTM op would take, and no casts below that point."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocasts(tensor: Tensor) -> bool:
    """Return whether autocast is on where this tensor is."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def own_types(tensor: Tensor) -> AbstractContextManager[None]:
    """Autocast off, where this tensor is: it would change the types of products whose results go to kernels by address."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()


def casts(value: Tensor, packed: bool) -> bool:
    """Return whether autocast changes a call: packed input on a CPU stays as it is, torch's autocast does not know that op."""
    return autocasts(value) and not (packed and value.device.type == "cpu")


def autocast_type(value: Tensor, packed: bool = False) -> torch.dtype:
    """The type that a value of a call has after autocast, which may be off: the type that torch's own LSTM op takes there.

    With cuDNN that is float16, whatever type autocast was given (aten/src/ATen/cudnn/AutocastRNN.cpp): the type of a result
    must not depend on who computes it. Elsewhere it is autocast's type. float64 stays.
    """
    device, dtype = value.device.type, value.dtype
    if not casts(value, packed) or dtype == torch.float64 or not dtype.is_floating_point:
        return dtype
    cudnn = device == "cuda" and torch.backends.cudnn.enabled and torch.version.hip is None
    return torch.float16 if cudnn else torch.get_autocast_dtype(device)
