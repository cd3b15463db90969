"""Fast path for small-batch inference: T · B ≤ 4, float32 on the CPU, no gradients, one direction, no projection.

Checks and all layers run in one C++ call (csrc/bindings/small_call.cpp), which reads every tensor's size, type and address
anew. For one step of a small LSTM the checks in Python would cost more than the kernels: 17 µs instead of 7 at H 8. Anything
else returns None, and the call goes on as any other. The caller has asked `is_plain_eager`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter

from fastlstm import dispatch
from fastlstm.backends import native

PLAN = "cpu: all layers in one call, weights read where they lie"


def run(lstm_class: type, lstm: object, x: object, hx: object) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """Output and (h_n, c_n) of a call of a module that is exactly of `lstm_class`, or None with nothing done."""
    call = _small_call(lstm_class)
    return None if call is None else call(lstm, x, hx)


@cache
def _small_call(lstm_class: type) -> Callable | None:
    """The native call, set up; None without the native module or in a torch without DLPack's exchange API (2.9)."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None or native.unavailable() is not None:
        return None
    names = {
        "lstm": lstm_class,  # exactly: a subclass may have its own idea of a check
        "tensor": Tensor,
        "parameter": Parameter,
        "is_neg": Tensor.is_neg,
        "contiguous": Tensor.contiguous,
        "new_empty": Tensor.new_empty,
        "get_num_threads": torch.get_num_threads,
        "watchers": (torch.is_grad_enabled,),
        "forward_ad": vars(torch.autograd.forward_ad),
        "forced": dispatch._requested,
        "last": dispatch._last_call,
        "plan": PLAN,
    }
    module = native.load()
    return module.short_call if module.set_up_short_call(capsule, names) else None
