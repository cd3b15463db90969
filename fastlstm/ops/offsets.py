"""The first row of each step of packed rows, on the device of the rows.

The lengths of a PackedSequence lie on the CPU. On a GPU the numbers go there by a copy that nothing waits for, and those of
the last lengths are kept: a CUDA graph can hold no such copy, so a capture uses what its warm-up made.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm._torch_compat import is_plain_cpu, is_transformed

_MOST = 64  # lengths that are kept


class _Entry(NamedTuple):
    offsets: Tensor
    stream: int  # whose work it was made by: another stream would have to wait for it


_recent: dict[tuple, _Entry] = {}  # device and batch sizes → offsets; the latest last
_keeping = Lock()  # threads with a GPU each (nn.DataParallel) come here at the same time
_captured: dict[tuple, _Entry] = {}  # those that a CUDA graph may read, for as long as the process lives


def of(batch_sizes: Tensor, device: torch.device) -> Tensor:
    """Return the exclusive cumulative sum of batch_sizes (T,) int64, on a device.

    Raises RuntimeError in a capture for lengths that were not run before it.
    """
    if device.type != "cuda" or not _read(batch_sizes):
        return (batch_sizes.cumsum(0) - batch_sizes).to(device)
    with torch.cuda.device(device):
        stream, capturing = torch.cuda.current_stream().cuda_stream, torch.cuda.is_current_stream_capturing()
        sizes = tuple(batch_sizes.tolist())
        return _kept((torch.cuda.current_device(), sizes), stream, capturing, lambda: _sent(sizes, device))


def _read(batch_sizes: Tensor) -> bool:
    """Whether numbers may be read here: nobody traces, or stands between."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()
    return not recorded and is_plain_cpu(batch_sizes)


def _sent(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    host = torch.tensor([0, *accumulate(sizes[:-1])], dtype=torch.int64, device="cpu", pin_memory=True)
    return host.to(device, non_blocking=True)  # torch keeps pinned memory until the copy is over


def _kept(key: tuple, stream: int, capturing: bool, make: Callable[[], Tensor]) -> Tensor:
    """What was made for a device and batch sizes, if this stream made it or captures; else what `make` makes.

    Captures of the same lengths all read the same: what a graph reads is never given up.
    """
    with _keeping:
        entry = (_captured.get(key) if capturing else None) or _recent.pop(key, None)
        if capturing and entry is None:
            raise RuntimeError(
                "a CUDA graph is being captured, and these lengths of packed input have not been run before; run the call "
                "once outside, as torch's warm-up before a capture does"
            )
        if entry is None or (entry.stream != stream and not capturing):
            with torch.inference_mode(False):  # it may be kept for a call that trains
                entry = _Entry(make(), stream)
        if capturing:
            entry = _captured.setdefault(key, entry)
        _recent[key] = entry
        while len(_recent) > _MOST:
            _recent.pop(next(iter(_recent)), None)
        return entry.offsets


def steps(offsets: Tensor, N: int) -> Tensor:
    """The step of each of the N rows, (N,)."""
    return torch.bucketize(torch.arange(N, dtype=torch.int64, device=offsets.device), offsets, right=True) - 1


def later(offsets: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Where the next step of each row's sequence lies, (N,), and whether there is one; where not, it is another row."""
    step = steps(offsets, N)
    after = (step + 1).clamp(max=offsets.shape[0] - 1)
    rows = offsets[after] + torch.arange(N, dtype=torch.int64, device=offsets.device) - offsets[step]
    inside = rows.clamp(max=N - 1)
    return inside, (after > step) & (rows < N) & (step[inside] == after)
