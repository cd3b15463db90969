"""Where memory is made, and the one place where the address of a GPU tensor is taken.

Tensors on the CPU go to native code as they are: csrc/bindings/boundary.h turns them into addresses, after it has looked at
type, device, sizes, strides and storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from fastlstm._torch_compat import (
    describe_object,
    dynamo_skip,
    has_memory,
    is_plain,
    is_plain_cpu,
    storage_bytes_left,
)
from fastlstm.backends import native


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return a contiguous tensor whose numbers nobody has written yet; no default of the user's plays a part."""
    return torch.empty(shape, dtype=dtype, device=device)


@cache
def plain_check() -> Callable[[Tensor], bool]:
    """The function that tells whether a native kernel may use a tensor's memory as it stands.

    The tensor is of torch's own classes, on the CPU, not a lazily negated view, and its storage holds it.
    """
    return is_plain_cpu if native.unavailable() is not None else native.load().is_plain


@cache
def _cut_off_check() -> Callable[[Tensor], bool]:
    return _is_cut_off if native.unavailable() is not None else native.load().is_cut_off


def _is_cut_off(v: Tensor) -> bool:
    if not v.is_cpu or v.layout is not torch.strided or v.numel() == 0 or not has_memory(v):
        return False
    last = sum((size - 1) * stride for size, stride in zip(v.shape, v.stride(), strict=True))
    return storage_bytes_left(v) < (last + 1) * v.element_size()


_OWN = (Tensor, torch.nn.Parameter)  # another class may answer the question where it is itself


def check_whole(*values: tuple[str, Tensor | None]) -> None:
    """Raise RuntimeError where the storage of a CPU tensor was freed or made shorter: torch would read what is not its own.

    values: names and tensors.
    """
    is_cut_off = _cut_off_check()
    for name, v in values:
        if v is not None and (type(v) not in _OWN or v.is_cpu) and is_cut_off(v):
            raise RuntimeError(
                f"{name} is {describe_object(v)}, and its storage has {v.untyped_storage().nbytes()} bytes, fewer than that "
                "takes; was the storage freed or resized?"
            )


def check_saved(saved: Sequence[Tensor | None]) -> None:
    """`check_whole` of what was saved for backward."""
    check_whole(*(("a tensor that was saved for backward", v) for v in saved))


def saved_whole(ctx: torch.autograd.function.FunctionCtx) -> tuple[Tensor | None, ...]:
    """What a Function saved for backward; raises RuntimeError where a storage was freed or made shorter since."""
    saved = ctx.saved_tensors
    check_saved(saved)
    return saved


def gpu_address(name: str, tensor: Tensor | None, index: int, dtype: torch.dtype, count: int) -> int:
    """Return the address of `count` contiguous elements on GPU number `index`, or in pinned memory of the host; 0 for None.

    Raises RuntimeError where the tensor is of another type or size, or its memory cannot be used as it stands.
    """
    if tensor is None:
        return 0
    usable = is_plain(tensor) and is_array(tensor, dtype, count)
    in_reach = tensor.get_device() == index if tensor.is_cuda else tensor.is_pinned()
    if not (usable and in_reach) or storage_bytes_left(tensor) < count * dtype.itemsize:
        raise RuntimeError(
            f"{name} is {describe_object(tensor)}, expected a plain contiguous tensor of {count} elements of {dtype} on "
            f"cuda:{index} whose storage holds them; was its storage resized?"
        )
    return tensor.data_ptr()


class ContentKey:
    """Tensors as they were, to tell whether torch changed one since.

    It holds the tensors and their memory, so that no new tensor has the address of one. Changes through `.data` or numpy do
    not show. A tensor that was made in inference mode has no version, and a key with one never holds.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._known = not any(v.is_inference() for v in self._tensors)
        self._memory = [v.detach() for v in self._tensors]  # of a tensor whose memory is exchanged by `.data = `
        self._state = _state_of(self._tensors) if self._known else None

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the same tensors, unchanged."""
        tensors = list(tensors)
        if not self._known or len(tensors) != len(self._tensors):
            return False
        same = all(v is own for v, own in zip(tensors, self._tensors, strict=True))
        return same and _state_of(tensors) == self._state


def _state_of(tensors: list[Tensor]) -> list[tuple]:
    return [(v.data_ptr(), v._version, v.shape, v.stride(), v.dtype) for v in tensors]


def is_array(tensor: Tensor, dtype: torch.dtype, count: int) -> bool:
    """Whether a tensor is `count` contiguous elements of a type."""
    return tensor.dtype == dtype and tensor.numel() == count and tensor.is_contiguous()


def is_aligned(tensor: Tensor, alignment: int) -> bool:
    """Whether a tensor's first element lies at a multiple of so many bytes."""
    return tensor.data_ptr() % alignment == 0


dynamo_skip(__name__)
