"""What is told of a compiled kernel, whichever backend it is of; each adds fields of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelRow:
    """capability: 80 for sm_80; tile, options: the variant, in words; registers: of a thread; shared: bytes of a block."""

    backend: str
    capability: int
    kernel: str
    math: str
    tile: str
    options: str
    registers: int
    shared: int
