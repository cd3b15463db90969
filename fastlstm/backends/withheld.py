"""Kernels that plans leave out, since they gave up in this process.

A kernel is known by its backend, its name and how it multiplies (`device.MATHS`). One that gave up (its blocks waited for
each other in vain, its launch was refused) is not tried again on that device until the process ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

Kernel = tuple[str, str, str]  # backend, kernel, math

_given_up: dict[tuple[int, Kernel], str] = {}  # device index and kernel → why
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


def kernels(backend: str, index: int, math: str) -> Mapping[str, str]:
    """Return the kernels of a backend that are not to be planned for a device, and why."""
    if not _given_up:
        return _NONE
    mine = ((kernel, why) for (i, (b, kernel, m)), why in _given_up.items() if (i, b, m) == (index, backend, math))
    return dict(mine)
