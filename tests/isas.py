"""The instruction sets of this machine, as the tests take them: each kernel once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastlstm.backends import native

ALL = native.load().isa_names() if native.unavailable() is None else []
BFLOAT16 = [
    name for name in ALL if name in ("avx512_bf16", "amx")
]  # multiply bfloat16; their float kernels are AVX-512's
FLOAT = [name for name in ALL if name not in BFLOAT16]


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force an instruction set."""
    module, before = native.load(), native.load().isa()
    module.set_isa(name)
    try:
        yield
    finally:
        module.set_isa(before)
