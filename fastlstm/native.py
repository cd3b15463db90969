"""The native module `fastlstm._C`: loaded at first use, with the reason where it cannot be.

It calls torch's OpenMP runtime, so torch is imported first (it puts that runtime's symbols in reach).
FASTLSTM_ISA=baseline|avx2|avx512 limits the instruction set.
"""

from __future__ import annotations

import os
from functools import lru_cache
from types import ModuleType

import torch  # noqa: F401  (first: see above)


@lru_cache(maxsize=1)
def _attempt() -> tuple[ModuleType | None, str | None]:
    try:
        from fastlstm import _C
    except ImportError as error:
        return (
            None,
            f"the native module is not there ({error}); reinstall fastlstm with a C++17 compiler at hand",
        )
    wanted = os.environ.get("FASTLSTM_ISA")
    if wanted:
        if wanted not in _C.isa_names():
            return (
                None,
                f"FASTLSTM_ISA is '{wanted}', this machine runs {', '.join(_C.isa_names())}; choose one of them",
            )
        _C.set_isa(wanted)
    return _C, None


def load() -> ModuleType:
    """Return `fastlstm._C`; raises ImportError with the reason and what to do."""
    module, reason = _attempt()
    if module is None:
        raise ImportError(reason)
    return module


def why_not() -> str | None:
    """Return None where the native module works, else the reason."""
    return _attempt()[1]
