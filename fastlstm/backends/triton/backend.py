"""The Triton backend: fused kernels on NVIDIA GPUs without a compiler on the user's machine. Triton loads at first use.

Three kernels, chosen by `planner.choose`: *single_block* (W_hh stays in registers and shared memory, one launch
per sequence), *streamed* (W_hh re-read from L2, one launch per sequence), *per_step* (one launch per step).
docs/gpu-resources.md has what they compile to.

With TRITON_INTERPRET=1, set before Triton is imported, the same kernels run on CPU tensors, slowly: for tests.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache, lru_cache
from importlib import import_module, metadata, util
from types import ModuleType

import torch
from torch import Tensor

from fastlstm._torch_compat import assert_async, dynamo_skip
from fastlstm.backends import blocklist
from fastlstm.backends.base import Backend, BackendError, forced_kernels, register
from fastlstm.backends.device import math_of, not_nvidia
from fastlstm.backends.triton import planner
from fastlstm.backends.triton.padding import padded
from fastlstm.backends.triton.planner import TritonPlan
from fastlstm.ops.arguments import Grads, OpInputs, Saved, Spec

NAME = "triton"
KERNELS = planner.KERNELS
OLDEST, TRIED = (3, 5), (3, 9)  # Triton's versions; docs/gpu-resources.md says what was tried
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_INTERPRETER_DEVICE = planner.GpuLimits("A100", 80, 108, 163 << 10)  # what plans are made for when there is no GPU


@register(NAME)
class Triton(Backend):
    """The kernels of this folder, compiled at first use and kept in Triton's cache."""

    kernel_names = KERNELS

    def unsupported_call(self, spec: Spec) -> str | None:
        if spec.dtype not in _TYPES:
            return f"dtype is {spec.dtype}; the triton backend takes float32, bfloat16 and float16"
        elements = 4 * padded(spec.H) * padded(spec.P)
        if elements >= planner.MAX_WEIGHTS:
            return f"W_hh has {elements} elements, less than {planner.MAX_WEIGHTS} are supported"
        return None

    def unavailable(self, device: torch.device) -> str | None:
        return missing() or _wrong_device(device)

    def no_plan(self, spec: Spec) -> str | None:
        choice = _choose(spec)
        return None if isinstance(choice, TritonPlan) else choice

    def describe(self, spec: Spec) -> str:
        """One line: which kernel, tile and warps would run, and why."""
        where = "; in Triton's interpreter" if interpreted() else ""
        return str(_choose(spec)) + _untried() + where

    def kernels(self, spec: Spec) -> tuple[str, ...]:
        return (_plan(spec).kernel,)

    def forward(self, inputs: OpInputs) -> tuple[Tensor, ...]:
        _assert_in_range(inputs.ids, inputs.w_x.shape[0])
        return _launch().forward(_plan(inputs.spec()), inputs)

    def backward(self, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, ...]:
        return _launch().backward(_plan(inputs.spec()), inputs, saved, grads)


@cache
def _launch() -> ModuleType:
    """The launches; importing them imports the kernels, and so Triton."""
    return import_module("fastlstm.backends.triton.launch")


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Return what is wrong with the installed Triton, with what to do, or None. Does not import it."""
    if util.find_spec("triton") is None:
        return f"Triton is not installed; pip install 'triton>={OLDEST[0]}.{OLDEST[1]}' (Linux)"
    version = _version()
    if _number(version) < OLDEST:
        return f"Triton is {version}, {OLDEST[0]}.{OLDEST[1]} or newer is needed; upgrade torch or triton"
    return None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _untried() -> str:
    """For the plan: that Triton is newer than any version that these kernels were tried with, or nothing."""
    version = _version()
    return (
        f"; Triton {version} is newer than {TRIED[0]}.{TRIED[1]}, the last one tried"
        if _number(version) > TRIED
        else ""
    )


def _version() -> str:
    """Triton's version, whatever the distribution is called that brought it."""
    for name in ("triton", "pytorch-triton", "triton-windows"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return import_module("triton").__version__


def _asked() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter (TRITON_INTERPRET, read when Triton is first imported)."""
    language = sys.modules.get("triton.language")
    return _asked() if language is None else "Interpreted" in type(language.standard.cdiv).__name__


def _changed(device: torch.device) -> str | None:
    """Return why TRITON_INTERPRET, changed since Triton was imported, stands in the way, or None."""
    if _asked() == interpreted():
        return None
    loaded = "fastlstm.backends.triton.math" in sys.modules  # kernels stay as they are from then on
    if _asked() and not (loaded and device.type == "cuda"):
        return (
            "TRITON_INTERPRET was set after Triton had been imported (torch imports it too, and so may other libraries); "
            "set it before Python starts"
        )
    if not _asked() and not loaded:
        return "Triton was imported with TRITON_INTERPRET set, and it no longer is; leave it as it was"
    return None


def _wrong_device(device: torch.device) -> str | None:
    if reason := _changed(device):
        return reason
    if device.type == "cpu":
        if interpreted():
            return None
        there = "is a GPU" if torch.cuda.is_available() else "is no GPU"
        return (
            f"tensors are on the CPU (there {there}); the kernels run on CUDA tensors, or, to test them without one, with "
            "TRITON_INTERPRET=1 set before Triton is imported"
        )
    if device.type != "cuda":
        return f"tensors are on {device.type}; the triton backend takes CUDA tensors"
    if reason := not_nvidia():
        return reason
    if interpreted():
        return "TRITON_INTERPRET is set, so kernels would run in Triton's interpreter; unset it"
    properties = gpu(device)
    if properties.capability < 80:
        return f"{properties.name} has compute capability {properties.capability / 10}, 8.0 or newer is needed"
    return None


def gpu(device: torch.device) -> planner.GpuLimits:
    """Return what the planner knows of a device; the interpreter's CPU stands in for an A100."""
    if device.type == "cpu":
        return _INTERPRETER_DEVICE
    return _gpu(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _gpu(index: int) -> planner.GpuLimits:
    p = torch.cuda.get_device_properties(index)
    shared = getattr(p, "shared_memory_per_block_optin", None) or _shared_bytes(index)
    return planner.GpuLimits(p.name, 10 * p.major + p.minor, p.multi_processor_count, shared)


def _shared_bytes(index: int) -> int:
    """Shared memory of a block where torch does not tell; Triton asks the driver."""
    return import_module("triton").runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def _choose(spec: Spec) -> TritonPlan | str:
    device, math, requested = gpu(spec.device), math_of(spec.dtype), forced_kernels.get().get(NAME, "")
    without = blocklist.blocked(NAME, spec.device.index or 0, device.name, math, by_name=bool(requested))
    choice = _cached_choice(
        device, spec.H, spec.B, spec.dtype.itemsize, math == "tf32", spec.projected, requested, frozenset(without)
    )
    if isinstance(choice, str):
        return "; ".join((choice, *(f"{kernel}: {why}" for kernel, why in without.items())))
    return choice


@lru_cache(maxsize=4096)
def _cached_choice(
    device, H: int, B: int, itemsize: int, tf32: bool, projected: bool, requested: str, without: frozenset[str]
) -> TritonPlan | str:
    """The planner's choice; where that is not to run, the first of the other kernels that can."""

    def ask(kernel: str) -> TritonPlan | str:
        return planner.choose(device, H, B, planner.how(itemsize, tf32, device), projected=projected, only=kernel)

    choice = ask(requested)
    if isinstance(choice, str) or choice.kernel not in without:
        return choice
    others = (plan for plan in map(ask, (s for s in KERNELS if s not in without)) if isinstance(plan, TritonPlan))
    return next(others, "no kernel is left that can run this call")


def _plan(spec: Spec) -> TritonPlan:
    choice = _choose(spec)
    if isinstance(choice, str):
        raise BackendError(f"backend 'triton' cannot run this call: {choice}")
    return choice


def _assert_in_range(ids: Tensor | None, V: int) -> None:
    """Ids on a GPU lie in 0 … V - 1: an assertion on the device, since the kernels do not ask. Nothing waits for it."""
    if ids is None or not ids.is_cuda or ids.numel() == 0:
        return
    low, high = torch.aminmax(ids)
    assert_async((low >= 0) & (high < V), f"ids outside 0 … {V - 1}")


dynamo_skip(__name__)
