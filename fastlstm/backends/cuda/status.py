"""Status words of the CUDA kernels: one int32 of pinned host memory for each device, kernel and type.

A kernel writes there why its results are NaN: a spin-wait between blocks timed out, or an id was outside its table. The
next call on the device reads the words without waiting and raises. A replayed CUDA graph makes no calls: use
`fastlstm.check()` after it.
"""

from __future__ import annotations

from functools import cache
from threading import Lock

import torch
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import blocklist, native
from fastlstm.backends.base import BackendError
from fastlstm.backends.device import MATHS

KERNELS = ("per_step", "single_block", "cooperative", "lean", "lean_layers", "decode")
TIMED_OUT, BAD_ID = 1, 2  # values of a word (csrc/cuda/args.h)


class GaveUpError(BackendError):
    """A spin-wait between the blocks of a kernel timed out; its results are NaN.

    kernel, math: the kernel and its type, empty where unknown. The call that raises this may be of another kernel.
    """

    def __init__(self, message: str, kernel: str = "", math: str = ""):
        super().__init__(message)
        self.kernel, self.math = kernel, math


_launched_on: set[int] = set()  # devices
_words: dict[int, Tensor] = {}  # of each device, for as long as the process lives: kernels hold their addresses
_making = Lock()  # two threads' kernels must not write to different words


def words(index: int) -> Tensor:
    """The words of a device, (kernels · types,) int32; the same memory as long as the process lives."""
    values = _words.get(index)
    if values is not None:
        return values
    pinned, count = torch.cuda.is_available(), len(KERNELS) * len(MATHS)
    with _making, torch.inference_mode(False):  # they are written outside it too
        if index not in _words:
            _words[index] = torch.zeros(count, dtype=torch.int32, device="cpu", pin_memory=pinned)
        return _words[index]


@cache
def word(index: int, kernel: str, math: str) -> Tensor:
    """The word of a kernel that multiplies so, (1,)."""
    _launched_on.add(index)
    at = KERNELS.index(kernel) * len(MATHS) + MATHS.index(math)
    return words(index)[at : at + 1]


def raise_on(index: int) -> None:
    """Raise what an earlier launch on a device wrote, once. A kernel that timed out is not planned there again."""
    values = words(index).tolist()
    if not any(values):
        return
    at, why = next((k, why) for k, why in enumerate(values) if why)
    words(index)[at] = 0
    kernel, math = KERNELS[at // len(MATHS)], MATHS[at % len(MATHS)]
    timeout = native.load().cuda.timeout_ms
    if why == TIMED_OUT:
        blocklist.block("cuda", index, kernel, (math,), f"its blocks waited {timeout / 1000:g} s for each other")
    raise error(why, f"cuda:{index}", kernel, timeout, math)


def error(why: int, where: str, kernel: str, timeout_ms: int, math: str = "") -> Exception:
    """The exception for the value of a word: IndexError for an id, GaveUpError for a timeout."""
    named = f"{kernel} in {math}" if math else kernel
    if why == BAD_ID:
        return IndexError(
            f"an earlier call on {where} had ids outside its table (kernel {named}); what depends on them is NaN. Check "
            "the vocabulary"
        )
    return GaveUpError(
        f"an earlier call on {where} gave up: the blocks of kernel {named} waited {timeout_ms / 1000:g} s for each "
        "other; its results are NaN. Is another program holding the GPU? Calls to come use another kernel; a CUDA graph "
        'that holds this one is to be captured again. `with fastlstm.backend("torch"):` uses torch\'s own kernels',
        *((kernel, math) if math else ()),
    )


def check(device: torch.device | str | int | None = None) -> None:
    """Wait for the CUDA kernels and raise what went wrong in them. For use after replays of a CUDA graph.

    Calls report by themselves, at the next call and without waiting; a graph replays kernels without a call.

    Args:
        device: a CUDA device; None: all on which this process launched kernels of fastlstm. On a CPU nothing is done.

    Raises:
        IndexError: ids lay outside their table; what depends on them is NaN.
        BackendError: a spin-wait between the blocks of a kernel timed out; its results are NaN. The message names kernel
            and type. The kernel is not used again in this process: capture the graph again.
    """
    for index in _indices(device):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("fastlstm.check() waits for the GPU, which a capture cannot; call it after a replay")
        try:
            torch.cuda.synchronize(index)
        finally:  # where the device itself failed, a word may tell why
            raise_on(index)


def _indices(device: torch.device | str | int | None) -> list[int]:
    if device is None:
        return sorted(_launched_on)
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type != "cuda":
        return []
    index = torch.cuda.current_device() if device.index is None else device.index
    return [index] if index in _launched_on else []


dynamo_skip(__name__)
