"""GPUs as the planner of the CUDA kernels sees them, real or made up.

The table of known GPUs and the cost model are in csrc/cuda/cost_model.cpp; this module only asks them.
backends/cuda/planner.py asks what a call costs, tools/gpu_model.py writes docs/gpu-model.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

__all__ = ["Device", "description", "known", "library"]  # and KNOWN, a dict of the known devices by name


@dataclass(frozen=True)
class Device:
    """What the planner knows of a GPU. Rates are per SM and clock: fma, half and tf32 count multiply-adds."""

    name: str
    capability: int  # 80 for 8.0
    sms: int
    ghz: float
    hbm_gbs: float
    l2_gbs: float
    shared_kib: int  # that one block can ask for
    fma: float  # float32
    half: float  # half-precision tensor cores with float32 sums, through mma.sync
    tf32: float
    cost: tuple[tuple[str, float], ...] = ()  # constants of the cost model that are not the built-in ones

    @property
    def shared_bytes(self) -> int:
        """Shared memory of one block, in bytes."""
        return self.shared_kib * 1024


_RATES = ("name", "capability", "sms", "ghz", "hbm_gbs", "l2_gbs")
_PRODUCTS = ("fma", "half", "tf32")


def library() -> ModuleType:
    """Return the planner, fastlstm._C.plan; raises ImportError where the native module is missing."""
    from fastlstm.backends import native  # not before it is asked for: it imports torch

    return native.load().plan


def description(device: Device, lib: ModuleType | None = None) -> Any:
    """Return the planner's own description of a device, a `Gpu`. lib: the planner, if not the installed one."""
    gpu = (lib or library()).Gpu()
    for name in (*_RATES, *_PRODUCTS):
        setattr(gpu, name, getattr(device, name))
    gpu.shared_bytes = device.shared_bytes
    for name, value in device.cost:
        setattr(gpu.cost, name, value)
    return gpu


def _device(gpu: Any) -> Device:
    rates, products = ([getattr(gpu, name) for name in names] for names in (_RATES, _PRODUCTS))
    return Device(*rates, gpu.shared_bytes // 1024, *products)


def known(name: str, capability: int, sms: int, shared_bytes: int, lib: ModuleType | None = None) -> Device:
    """Return the known device of this name, or one of its capability, with its own SM count and shared memory.

    Args:
        name: as torch.cuda.get_device_properties has it.
        capability: 80 for 8.0.
        sms: multiprocessors.
        shared_bytes: limit of one block.
        lib: the planner, if not the installed one.
    """
    return _device((lib or library()).known(name, capability, sms, shared_bytes))


@cache
def _known() -> dict[str, Device]:
    return {gpu.name: _device(gpu) for gpu in library().devices()}


def __getattr__(name: str) -> Any:
    if name == "KNOWN":  # needs the native module, which need not be there when this module is imported
        return _known()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
