"""The CUDA backend: the kernels of csrc/cuda on an NVIDIA GPU, where fastlstm._C was built with nvcc.

Three kernels, chosen by the planner (csrc/cuda/plan.h): *tile* (W_hh in one block), *persistent* (W_hh spread over the
chip), *step* (a cuBLAS product and one fused kernel per step). Launches go to the current stream of the tensors' device;
nothing is allocated but through torch and nothing waits, so a CUDA graph can hold a call (after one call outside it).
Kernels that `withheld` knows are not planned. A GPU that refuses a cooperative launch gets another kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from types import ModuleType

import torch
from torch import Tensor

from fastlstm import checks, gpu_model, native
from fastlstm import gradients as products
from fastlstm.backends import cuda_op, cuda_plan, cuda_status, withheld
from fastlstm.backends.common import Spec, UnfitError, spec_of
from fastlstm.backends.cuda_op import Plan
from fastlstm.backends.cuda_status import KERNELS
from fastlstm.backends.device import (
    MATHS,
    math_of,
    multiplies_wide,
    not_nvidia,
    own_types,
    product_into,
    products_as_cudnn,
)

__all__ = ["KERNELS", "NAME", "backward", "check", "force", "forward", "plan", "planned", "why_not"]

NAME = "cuda"
_forced: ContextVar[str] = ContextVar("fastlstm_cuda_kernel", default="")


@contextmanager
def force(kernel: str | None) -> Iterator[None]:
    """Use one kernel inside a `with` block: step, tile or persistent; None: choose as usual."""
    if kernel is not None and kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}, expected one of {', '.join(KERNELS)}")
    token = _forced.set(kernel or "")
    try:
        yield
    finally:
        _forced.reset(token)


def why_not(spec: Spec) -> str | None:
    """Return why these kernels cannot run this call, with what to do, or None."""
    return _unfit(spec) or _no_plan(spec)


def _unfit(spec: Spec) -> str | None:
    """Why no plan is asked for: the type, the installation or the device."""
    if spec.dtype not in cuda_op.TYPE_CODES:
        return f"dtype is {spec.dtype}; the CUDA kernels take float32, bfloat16 and float16"
    return not_built() or _wrong_device(spec.device)


def not_built() -> str | None:
    """Return why this installation has no CUDA kernels, with what to do, or None."""
    reason = native.why_no_module()
    if reason is None and not hasattr(native.load(), "cuda"):
        reason = (
            f"fastlstm has no CUDA kernels, since {native.load().no_cuda}; install an nvcc (a CUDA toolkit, or pip "
            "install 'fastlstm[cuda-build]'), then install fastlstm again from source with FASTLSTM_CUDA=on"
        )
    return reason


def _wrong_device(device: torch.device) -> str | None:
    if device.type != "cuda":
        return _no_driver() or f"tensors are on {device}; the CUDA kernels take CUDA tensors"
    return not_nvidia() or _no_driver() or _no_code(_index(device))


@cache
def _no_driver() -> str | None:
    return _lib().missing() or None


@cache
def _no_code(index: int) -> str | None:
    """Why nothing that was built runs on a GPU.

    Machine code is for one major version (with an a, as 90a: for one GPU's alone), PTX of the newest for all that is newer.
    """
    capability, archs = _lib().properties(index)[0], _lib().archs.split(",")
    plain = [int(a) for a in archs if not a.endswith("a")]
    alike = [a for a in plain if a // 10 == capability // 10 and a <= capability]
    if alike or f"{capability}a" in archs or (plain and plain[-1] <= capability):
        return None
    return (
        f"the GPU has compute capability {capability / 10} and the kernels were built for "
        f"{', '.join(map(_capability, archs))}; install fastlstm from source with FASTLSTM_CUDA_ARCHS={capability}"
    )


def _capability(arch: str) -> str:
    """90 as 9.0, 90a as 9.0 alone."""
    number = int(arch.removesuffix("a")) / 10
    return f"{number} alone" if arch.endswith("a") else str(number)


def _no_plan(spec: Spec) -> str | None:
    try:
        _choose(spec)
    except ValueError as error:
        return str(error)
    return None


def _lib() -> ModuleType:
    return native.load().cuda


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _gpu(index: int) -> gpu_model.Device:
    return gpu_model.known(torch.cuda.get_device_name(index), *_lib().properties(index))


def _choose(spec: Spec) -> Plan:
    index, math, only = _index(spec.device), math_of(spec.dtype), _forced.get()
    without = withheld.kernels(NAME, index, _gpu(index).name, math, by_name=bool(only))
    tf32 = math == "tf32" and _gpu(index).tf32 > 0
    try:
        return _cached_choice(index, spec.dtype, tf32, spec.H, spec.B, spec.projected, only, frozenset(without))
    except ValueError as error:
        if not without:
            raise
        raise ValueError("; ".join((str(error), *(f"{kernel}: {why}" for kernel, why in without.items())))) from None


@lru_cache(maxsize=4096)
def _cached_choice(
    index: int, dtype: torch.dtype, tf32: bool, H: int, B: int, projected: bool, only: str, without: frozenset[str]
) -> Plan:
    code = Plan(None, None, tf32).code(dtype)
    sizes = {"H": H, "B": B, "projected": projected}
    return Plan(*cuda_plan.choices(native.load().plan, _gpu(index), code, **sizes, only=only, without=without), tf32)


def planned(spec: Spec) -> tuple[str, ...]:
    """Return the kernels that a call would run: forward's, and where it trains backward's."""
    chosen = _choose(spec)
    return (chosen.forward.kernel, chosen.backward.kernel)[: 1 + spec.training]


def plan(spec: Spec) -> str:
    """Return one line: kernel, tiles, registers, shared memory, blocks, the predicted time of a step and its bound."""
    chosen = _choose(spec)
    return f"cuda: {cuda_plan.sentence(chosen.forward, _gpu(_index(spec.device)))}"


def check(device: torch.device) -> None:
    """Wait for a device and raise what its kernels left."""
    cuda_status.check(device)


def _stream(index: int) -> int:
    """The current stream of a device. Torch's inner function, where it has that, makes no object for it."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return raw(index) if raw else torch.cuda.current_stream(index).cuda_stream


class _Gpu:
    """A GPU as a `cuda_op.Runtime` for one call, on the current stream of the device."""

    def __init__(self, index: int, status: Tensor):
        self.lib = _lib()
        self.stream = _stream(index)
        self.status = status

    def use(self, name: str, tensor: Tensor | None, mode: str) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        product_into(a, b, out)

    def product_type(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if multiplies_wide() else dtype


@contextmanager
def _on(tensor: Tensor, *word: str) -> Iterator[_Gpu]:
    """The tensor's device as the current one, for torch and for the runtime inside fastlstm._C. word: kernel and math."""
    index = _index(tensor.device)
    with torch.cuda.device(index), products_as_cudnn(tensor.dtype):
        _lib().set_device(index)
        cuda_status.raise_on(index)
        yield _Gpu(index, cuda_status.word(index, *word) if word else cuda_status.words(index)[:1])


def _checked(spec: Spec) -> Plan:
    reason = _unfit(spec)
    if reason is None:
        try:
            return _choose(spec)
        except ValueError as error:
            reason = str(error)
    raise UnfitError(f"backend 'cuda' cannot run this call: {reason}")


def forward(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save):
    """Run one layer in one direction; arguments and returns as in `fastlstm.reference.forward`."""
    spec = spec_of(x, ids, w_x, w_hh, w_hr, h0, batch_sizes, reset, reverse, save)
    inputs = _contiguous(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset)
    return _run(spec, w_hh, 0, lambda gpu, chosen: cuda_op.forward(gpu, chosen, *inputs, reverse, save))


def backward(
    dh, dc, dh_n, dc_n, x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save, h, c, gates
):
    """Run the backward recurrence; arguments and returns as in `fastlstm.reference.backward`."""
    spec = spec_of(x, ids, w_x, w_hh, w_hr, h0, batch_sizes, reset, reverse, save)
    inputs = _contiguous(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset)
    args = (*_contiguous(dh, dc, dh_n, dc_n), *inputs, reverse, save, *_contiguous(h, c, gates))
    return _run(spec, w_hh, 1, lambda gpu, chosen: cuda_op.backward(gpu, chosen, *args))


def gradients(wanted: tuple[bool, ...], grads: tuple, inputs: tuple, outputs: tuple) -> tuple[Tensor | None, ...]:
    """Backward and the products that follow from it, of plain tensors; arguments and returns as in `backends.cpu.gradients`."""
    with own_types(inputs[4]):
        inputs = checks.inputs(*inputs)  # autograd kept them, and hooks may have changed what it gives back
        *grads, h, c, gates = checks.gradients(*grads, inputs, *outputs)
        dxg, d_hr, dh0, dc0 = backward(*grads, *inputs, h, c, gates)
    return *products.of_weights(wanted, dxg, d_hr, inputs, h, c, gates), dh0, dc0


def _run(spec: Spec, tensor: Tensor, direction: int, call: Callable) -> tuple[Tensor, ...]:
    """One call; direction: 0 forward, 1 backward. A launch that is refused did nothing: all of it again without it."""
    chosen, math, index = _checked(spec), math_of(spec.dtype), _index(tensor.device)
    kernel = (chosen.forward, chosen.backward)[direction].kernel
    with _on(tensor, kernel, math) as gpu:
        try:
            return call(gpu, chosen)
        except _lib().RefusedLaunchError as error:
            withheld.give_up(NAME, index, kernel, MATHS, f"the GPU refused its launch ({error}); is it shared?")
    return _run(spec, tensor, direction, call)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]
