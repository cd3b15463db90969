"""The short way for small calls: a module call without gradients that never comes back to Python in between.

For one step of a small LSTM the checks and the dispatch of the general path cost more than the kernels; here they are in
C++ (csrc/bindings/small_call.cpp), which looks at every tensor anew in every call. Whatever is not plain goes the general way,
which also says what is wrong with bad arguments. Applies to T · B up to 4, float32 on the CPU, no projection, one
direction, no mask to draw, nothing that wants to see torch operations go by (tracing, transforms, modes, autocast).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter

from fastlstm import dispatch, native

_C = torch._C
PLAN = "cpu: all layers in one call, weights read where they lie"


def run(lstm: object, x: object, hx: object) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """Output and (h_n, c_n) of a module call, or None where the short way does not apply and nothing was done."""
    call = _short_call()
    return None if call is None else call(lstm, x, hx)


@cache
def _short_call() -> Callable | None:
    """The native call, set up; None without the native module or in a torch without DLPack's exchange API (2.9)."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None or native.why_not() is not None:
        return None
    from fastlstm.nn import LSTM

    found = {
        "lstm": LSTM,  # exactly: a subclass may have its own idea of a check
        "tensor": Tensor,
        "parameter": Parameter,
        "is_neg": Tensor.is_neg,
        "contiguous": Tensor.contiguous,
        "new_empty": Tensor.new_empty,
        "get_num_threads": torch.get_num_threads,
        "watchers": (
            torch.is_grad_enabled,
            _C._are_functorch_transforms_active,
            _C._len_torch_dispatch_stack,
            _C._len_torch_function_stack,
            _C._is_any_autocast_enabled,
            _C._get_tracing_state,
        ),
        "forward_ad": vars(torch.autograd.forward_ad),
        "forced": dispatch._forced,
        "last": dispatch._last,
        "plan": PLAN,
    }
    module = native.load()
    return module.small_call if module.set_up_small_call(capsule, found) else None
