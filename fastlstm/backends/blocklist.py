"""Kernels that are not planned: found wrong on this GPU model by `fastlstm doctor --verify`, or blocked in this process.

A kernel is known by its backend, its name and how it multiplies (`device.MATHS`). One that gave up (its blocks waited for each
other in vain, its launch was refused) is not tried again on that device until the process ends. One that the record has
as wrong still runs where it is forced by its name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from fastlstm.verify import record

KernelKey = tuple[str, str, str]  # backend, kernel, math

_blocked_in_process: dict[tuple[int, KernelKey], str] = {}  # device index and kernel → reason
_override: frozenset[KernelKey] | None = None  # the wrong kernels in place of the record's
_NONE_BLOCKED: Mapping[str, str] = {}


def block(backend: str, index: int, kernel: str, maths: Iterable[str], reason: str) -> None:
    """Leave a kernel out of all plans for a device from now on, and say so once."""
    new = [math for math in maths if (index, (backend, kernel, math)) not in _blocked_in_process]
    if not new:
        return
    _blocked_in_process.update({(index, (backend, kernel, math)): reason for math in new})
    logging.getLogger("fastlstm").warning(
        "%s: kernel %s (%s) is not used again on cuda:%d in this process: %s",
        *(backend, kernel, ", ".join(new), index, reason),
    )


def blocked(backend: str, index: int, gpu: str, math: str, by_name: bool = False) -> Mapping[str, str]:
    """Return the kernels of a backend that are not to be planned, and why.

    index: of the device; gpu: its model; by_name: the kernel is forced, so that the record does not count.
    """
    wrong = frozenset() if by_name else _recorded_wrong(gpu, backend, math)
    if not (wrong or _blocked_in_process):
        return _NONE_BLOCKED
    reasons = dict.fromkeys(wrong, f"`fastlstm doctor --verify` found it wrong in {math} on this GPU model")
    in_process = (
        (kernel, reason)
        for (i, (b, kernel, m)), reason in list(_blocked_in_process.items())
        if (i, b, m) == (index, backend, math)
    )
    return {**reasons, **dict(in_process)}


def _recorded_wrong(gpu: str, backend: str, math: str) -> frozenset[str]:
    if _override is not None:
        return frozenset(kernel for b, kernel, m in _override if (b, m) == (backend, math))
    return record.wrong_kernels(gpu, backend, math)


@contextmanager
def override_record(wrong: Iterable[KernelKey]) -> Iterator[None]:
    """Inside a `with` block, for the whole process: these kernels are the wrong ones, whatever the record says."""
    global _override
    before, _override = _override, frozenset(wrong)
    try:
        yield
    finally:
        _override = before
