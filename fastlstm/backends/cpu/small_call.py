"""Fast path for small-batch inference: T · B ≤ 4, float32 on the CPU, no gradients, one direction, no projection.

Checks and all layers run in one C++ call (csrc/bindings/small_call.cpp), which asks the observers of `is_plain_eager` and reads
every tensor's size, type and address anew. For one step of a small LSTM the checks in Python would cost more than the kernels:
17 µs instead of 7 at H 8. Anything else returns None, and the call goes on as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

from fastlstm._torch_compat import NATIVE_OBSERVERS, dynamo_skip
from fastlstm.backends import native
from fastlstm.ops.cell import Stack

PLAN = "cpu: all layers in one call, weights read where they lie"


MOST_ROWS = 4  # T · B up to which reading W_hh unpacked beats packing it; kMostRows in csrc/bindings/small_call.cpp


def takes(stack: Stack, T: int, B: int, dtype: torch.dtype, batch_first: bool) -> bool:
    """Whether a call of these sizes, without gradients, tokens or packing, is one of few rows; for `explain`."""
    plain = stack.directions == 1 and not stack.proj_size and dtype == torch.float32
    time_first = not batch_first or 1 in (T, B)
    return plain and time_first and 0 < T * B <= MOST_ROWS


@cache
def prepared(lstm_class: type, requested: ContextVar, last_call: ContextVar) -> Callable | None:
    """The native call, set up once; None without the native module or where it cannot read tensors by itself (torch 2.9).

    Args:
        lstm_class: it takes modules that are exactly of this class. requested: holds the name of the requested backend.
        last_call: takes `PLAN`.

    Returns:
        A function of module, x and hx. It returns output and (h_n, c_n), or None with nothing done.
    """
    if native.unavailable() is not None:
        return None
    names = {
        "lstm": lstm_class,  # exactly: a subclass may have its own idea of a check
        "contiguous": Tensor.contiguous,
        "new_empty": Tensor.new_empty,
        "get_num_threads": torch.get_num_threads,
        "observers": (torch.is_grad_enabled, *NATIVE_OBSERVERS),
        "drop_options": lstm_class.drop_options,
        "forward_ad": vars(torch.autograd.forward_ad),
        "requested": requested,
        "last_call": last_call,
        "plan": PLAN,
    }
    module = native.load()
    return module.small_call if module.set_up_small_call(names) else None


dynamo_skip(__name__)
