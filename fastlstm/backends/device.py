"""What the GPU backends ask torch about, and tell it: whose GPUs there are, and whether float32 is multiplied as TF32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from threading import Lock

import torch
from torch import Tensor

MATHS = ("float32", "tf32", "bfloat16", "float16")  # how numbers are multiplied
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

_switching = Lock()
_calls = 0  # inside `products_as_cudnn`
_before: str | bool = False  # the matrix products' switch as the first of them found it


def allows_tf32() -> bool:
    """Return whether torch would let cuDNN's LSTM multiply float32 as TF32."""
    rnn = getattr(torch.backends.cudnn, "rnn", None)
    precision = getattr(rnn, "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if precision is None else precision == "tf32"


def math_of(dtype: torch.dtype) -> str:
    """How numbers of a type are multiplied now: one of MATHS, or the type's name where it is none that kernels take."""
    return "tf32" if dtype == torch.float32 and allows_tf32() else _NAMES.get(dtype, str(dtype))


def products_as_cudnn(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Let torch's float32 matrix products on a GPU be TF32 where cuDNN's are: nn.LSTM's products are all cuDNN's.

    Torch has one switch for the process, so other threads' products follow it too until the `with` block ends; calls
    that overlap put it back when the last one ends. Other types than float32 leave it alone.

    From torch 2.9 on the switch is fp32_precision. Until the block ends a thread that reads the older names for it
    (`torch.backends.cuda.matmul.allow_tf32`, `torch.get_float32_matmul_precision()`) may get torch's error on mixing
    them; reading fp32_precision is fine. Setting the older name too would warn the user of its end (torch 2.9 to 2.11).
    """
    return _AsCudnn() if dtype == torch.float32 else nullcontext()


class _AsCudnn:
    """`products_as_cudnn` of float32. No generator: these `with` blocks are a share of a small call's time."""

    def __enter__(self) -> None:
        global _calls, _before
        with _switching:
            _before = _before if _calls else _matmul()
            _calls += 1
            _set_matmul(allows_tf32())

    def __exit__(self, *error: object) -> None:
        global _calls
        with _switching:
            _calls -= 1
            if not _calls:
                _set_matmul(_before)


def products_of(tensor: Tensor) -> AbstractContextManager[None]:
    """`products_as_cudnn` for products with this tensor, where they run on a GPU and are not being traced."""
    traced = torch.compiler.is_compiling()
    return products_as_cudnn(tensor.dtype) if tensor.is_cuda and not traced else nullcontext()


@cache
def multiplies_wide() -> bool:
    """Return whether this torch multiplies half types into float32 on a GPU."""
    return "dtype_out" in torch.ops.aten.mm.overloads()


def product_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a @ b to `out`, which may be float32 where a and b are half types; cuBLAS sums in float32 either way."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
        return
    try:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    except RuntimeError:  # a size or stride for which cuBLAS has no such product
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def _word() -> str:
    """What torch calls the switch: fp32_precision from 2.9 on, with words for values, before it allow_tf32."""
    return "fp32_precision" if hasattr(torch.backends.cudnn, "rnn") else "allow_tf32"


def _matmul() -> str | bool:
    return getattr(torch.backends.cuda.matmul, _word())


def _set_matmul(value: str | bool) -> None:
    if _word() == "fp32_precision" and isinstance(value, bool):
        value = "tf32" if value else "ieee"
    if _matmul() != value:
        setattr(torch.backends.cuda.matmul, _word(), value)


def not_nvidia() -> str | None:
    """Return why torch's GPUs are not NVIDIA's, or None."""
    if torch.version.hip is None:
        return None
    return "this torch is built for AMD GPUs (ROCm); the kernels run on NVIDIA's"
