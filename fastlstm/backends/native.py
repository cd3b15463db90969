"""The native module `fastlstm._C`: loaded at first use, with the reason where it cannot be.

It calls torch's OpenMP runtime, so torch is imported first (it puts that runtime's symbols in reach).
FASTLSTM_ISA=baseline|avx2|avx512 limits the instruction set.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from types import ModuleType

import torch  # noqa: F401  (first: see above)

from fastlstm._torch_compat import dynamo_skip

# What the package calls; a module without one of them was built from older sources (tests/backends/test_native.py holds the
# lists). A build with FASTLSTM_CPU=off has no CPU kernels and says so in `no_cpu`.
INTERFACE = 2  # `interface` of csrc/bindings/module.cpp; raise both where the keywords of a native function change
_NAMES = ("plan",)
_CPU_NAMES = (
    *("StepLayer", "any_outside", "array", "gemm", "isa", "isa_names", "lstm_backward", "lstm_forward", "lstm_step"),
    *("pack", "sample", "set_isa", "set_up_small_call", "small_call", "sum_by_id"),
)


@lru_cache(maxsize=1)
def _attempt() -> tuple[ModuleType | None, str | None]:
    try:
        from fastlstm import _C
    except ImportError as error:
        return (
            None,
            f"the native module is not there ({error}); reinstall fastlstm with a C++17 compiler at hand",
        )
    without_cpu = hasattr(_C, "no_cpu")
    missing = [name for name in (*_NAMES, *_CPU_NAMES * (not without_cpu)) if not hasattr(_C, name)]
    interface = getattr(_C, "interface", 1)
    if missing or interface != INTERFACE:
        why = f"has no {', '.join(missing)}" if missing else f"has interface {interface}, expected {INTERFACE}"
        reason = (
            f"the native module {_C.__file__} is older than the package (it {why}) and is not used; "
            "build it again: pip install -e . in the checkout"
        )
        logging.getLogger("fastlstm").warning(reason)  # once: everything runs without it, slowly
        return None, reason
    requested = os.environ.get("FASTLSTM_ISA")
    if requested and not without_cpu:
        if requested not in _C.isa_names():
            reason = f"FASTLSTM_ISA is '{requested}', this machine runs {', '.join(_C.isa_names())}; choose one of them"
            logging.getLogger("fastlstm").warning("%s (torch's own LSTM runs until then)", reason)
            return None, reason
        _C.set_isa(requested)
    return _C, None


def load() -> ModuleType:
    """Return `fastlstm._C`; raises ImportError with the reason and what to do."""
    module, reason = _attempt()
    if module is None:
        raise ImportError(reason)
    return module


def module_unavailable() -> str | None:
    """Return None where the native module works, with the CPU kernels or without, else the reason."""
    return _attempt()[1]


def unavailable() -> str | None:
    """Return None where the native module's CPU kernels work, else the reason."""
    module, reason = _attempt()
    if module is not None and "no_cpu" in vars(module):  # hasattr takes ten times as long where it is not there
        return f"this build of fastlstm has no CPU kernels ({module.no_cpu}); install it again without that setting"
    return reason


dynamo_skip(__name__)
