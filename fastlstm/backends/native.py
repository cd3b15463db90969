"""The native module `fastlstm._C`: loaded at first use, with the reason where it cannot be.

It calls torch's OpenMP runtime, so torch is imported first (it puts that runtime's symbols in reach).
FASTLSTM_ISA=baseline|avx2|avx512|avx512_bf16|amx limits the instruction set (a processor may lack some),
FASTLSTM_CACHE_MB the memory that is kept between steps.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from types import ModuleType

import torch  # first: see above

from fastlstm._torch_compat import constant_for_dynamo, dynamo_skip, native_boundary

# What the package calls; a module without one of them was built from older sources (tests/backends/test_native.py holds the
# lists). A build with FASTLSTM_CPU=off has no CPU kernels and says so in `no_cpu`.
INTERFACE = 5  # `interface` of csrc/bindings/module.cpp; raise both where what it offers changes
_NAMES = ("plan",)
_CPU_NAMES = (
    *(
        "Int8Layer",
        "StepLayer",
        "array",
        "empty_cache",
        "gemm",
        "int8_forward",
        "int8_isa",
        "int8_sample",
        "int8_step",
        "is_cut_off",
        "is_intel",
        "is_plain",
        "isa",
        "isa_names",
        "limit_cache",
        "lstm_backward",
        "lstm_forward",
        "lstm_step",
        "multiplies_bfloat16",
    ),
    *("pack", "sample", "set_isa", "set_up_boundary", "set_up_small_call", "small_call", "sum_by_id"),
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
    if not without_cpu:
        _C.set_up_boundary(native_boundary())
        _limit_cache(_C)
    return _C, None


def _limit_cache(module: ModuleType) -> None:
    """FASTLSTM_CACHE_MB: how much memory of a training step is kept for the next one."""
    megabytes = os.environ.get("FASTLSTM_CACHE_MB", "")
    if megabytes.isdecimal():
        module.limit_cache(min(int(megabytes), 1 << 30) << 20)
    elif megabytes:
        logging.getLogger("fastlstm").warning(
            "FASTLSTM_CACHE_MB is '%s', expected a whole number of megabytes; it is not used", megabytes
        )


def empty_cache() -> None:
    """Give the memory that training steps keep for the next step back to the system; where there is none, nothing happens.

    Freed arrays of training steps stay until a later step asks for their size, up to 256 MB together, or as many as the
    environment variable FASTLSTM_CACHE_MB says; each thread keeps up to 48 MB of scratch memory besides.
    """
    if _attempt.cache_info().currsize and unavailable() is None:
        load().empty_cache(torch.get_num_threads())


def load() -> ModuleType:
    """Return `fastlstm._C`; raises ImportError with the reason and what to do."""
    module, reason = _attempt()
    if module is None:
        raise ImportError(reason)
    return module


def module_unavailable() -> str | None:
    """Return None where the native module works, with the CPU kernels or without, else the reason."""
    return _attempt()[1]


@constant_for_dynamo
def unavailable() -> str | None:
    """Return None where the native module's CPU kernels work, else the reason."""
    module, reason = _attempt()
    if module is not None and "no_cpu" in vars(module):  # hasattr takes ten times as long where it is not there
        return f"this build of fastlstm has no CPU kernels ({module.no_cpu}); install it again without that setting"
    return reason


dynamo_skip(__name__)
