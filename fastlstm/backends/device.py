"""What the GPU backends ask torch about, and tell it: whose GPUs there are, and whether float32 is multiplied as TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

_switching = Lock()
_calls = 0  # inside `products_as_cudnn`
_before: str | bool = False  # the matrix products' switch as the first of them found it


def allows_tf32() -> bool:
    """Return whether torch would let cuDNN's LSTM multiply float32 as TF32."""
    rnn = getattr(torch.backends.cudnn, "rnn", None)
    precision = getattr(rnn, "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if precision is None else precision == "tf32"


@contextmanager
def products_as_cudnn(dtype: torch.dtype) -> Iterator[None]:
    """Let torch's float32 matrix products on a GPU be TF32 where cuDNN's are: nn.LSTM's products are all cuDNN's.

    Torch has one switch for the process, so other threads' products follow it too until the `with` block ends; calls
    that overlap put it back when the last one ends. Other types than float32 leave it alone.
    """
    global _calls, _before
    if dtype != torch.float32:
        yield
        return
    with _switching:
        _before = _before if _calls else _matmul()
        _calls += 1
        _set_matmul(allows_tf32())
    try:
        yield
    finally:
        with _switching:
            _calls -= 1
            if not _calls:
                _set_matmul(_before)


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
