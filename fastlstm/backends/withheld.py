"""Kernels that plans leave out: wrong on this GPU model by `fastlstm doctor --verify`, or given up in this process.

A kernel is known by its backend, its name and how it multiplies (`device.MATHS`). One that gave up (its blocks waited for each
other in vain, its launch was refused) is not tried again on that device until the process ends. One that the record has
as wrong still runs where it is forced by its name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from fastlstm.verify import record

Kernel = tuple[str, str, str]  # backend, kernel, math

_given_up: dict[tuple[int, Kernel], str] = {}  # device index and kernel → why
_instead: frozenset[Kernel] | None = None  # of the record's
_NONE: Mapping[str, str] = {}


def give_up(backend: str, index: int, kernel: str, maths: Iterable[str], why: str) -> None:
    """Leave a kernel out of all plans for a device from now on, and say so once."""
    new = [math for math in maths if (index, (backend, kernel, math)) not in _given_up]
    if not new:
        return
    _given_up.update({(index, (backend, kernel, math)): why for math in new})
    logging.getLogger("fastlstm").warning(
        "%s: kernel %s (%s) is not used again on cuda:%d in this process: %s",
        *(backend, kernel, ", ".join(new), index, why),
    )


def kernels(backend: str, index: int, gpu: str, math: str, by_name: bool = False) -> Mapping[str, str]:
    """Return the kernels of a backend that are not to be planned, and why.

    index: of the device; gpu: its model; by_name: the kernel is forced, so that the record does not count.
    """
    wrong = frozenset() if by_name else _recorded(gpu, backend, math)
    if not (wrong or _given_up):
        return _NONE
    reasons = dict.fromkeys(wrong, f"`fastlstm doctor --verify` found it wrong in {math} on this GPU model")
    mine = (
        (kernel, why) for (i, (b, kernel, m)), why in list(_given_up.items()) if (i, b, m) == (index, backend, math)
    )
    return {**reasons, **dict(mine)}


def _recorded(gpu: str, backend: str, math: str) -> frozenset[str]:
    if _instead is not None:
        return frozenset(kernel for b, kernel, m in _instead if (b, m) == (backend, math))
    return record.wrong(gpu, backend, math)


@contextmanager
def instead_of_record(wrong: Iterable[Kernel]) -> Iterator[None]:
    """Inside a `with` block, for the whole process: these kernels are the wrong ones, whatever the record says."""
    global _instead
    before, _instead = _instead, frozenset(wrong)
    try:
        yield
    finally:
        _instead = before
