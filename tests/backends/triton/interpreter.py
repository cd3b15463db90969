# ruff: noqa: E402  the environment goes first
"""Loads the Triton backend with Triton's interpreter, whatever the environment says, and leaves the environment as it was.

tests/conftest.py imports this before anything else can import Triton. `apply` runs one function of math.py on a vector.
"""

from __future__ import annotations

import os

_before = os.environ.get("TRITON_INTERPRET")
os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastlstm.backends.triton import launch  # noqa: F401  decorates the kernels
from fastlstm.backends.triton.math import round_to, sigmoid, tanh, to_tf32


@triton.jit
def _elementwise(x_ptr, y_ptr, n, WHAT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0)
    if WHAT == "tanh":
        y = tanh(x)
    elif WHAT == "sigmoid":
        y = sigmoid(x)
    elif WHAT == "tf32":
        y = to_tf32(x)
    elif WHAT == "bfloat16":
        y = round_to(x, tl.bfloat16).to(tl.float32)
    else:
        y = round_to(x, tl.float16).to(tl.float32)
    tl.store(y_ptr + at, y, mask=at < n)


_call_and_patch = interpreter.InterpretedFunction.__call__


def _call(self, *args, **kwargs):
    """Call a function inside a kernel without patching triton.language again (a third of the time): the launch has."""
    in_package = self.fn.__module__.startswith("fastlstm.")
    return self.rewrite()(*args, **kwargs) if in_package else _call_and_patch(self, *args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call


def apply(what: str, x: torch.Tensor) -> torch.Tensor:
    """tanh, sigmoid, to_tf32, or rounding to bfloat16 or float16 and back, of float32 x (n,)."""
    y = torch.empty_like(x)
    _elementwise[(-(-x.numel() // 1024),)](x, y, x.numel(), what, 1024)
    return y


apply("tanh", torch.zeros(1))  # the first launch imports the rest of Triton
if _before is None:
    del os.environ["TRITON_INTERPRET"]
else:
    os.environ["TRITON_INTERPRET"] = _before
