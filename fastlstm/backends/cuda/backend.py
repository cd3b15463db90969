"""The CUDA backend: the kernels of csrc/cuda on an NVIDIA GPU, where fastlstm._C was built with nvcc.

Four kernels, chosen by the planner (csrc/cuda/plan.h): *single_block* (W_hh in one block), *cooperative* (W_hh spread
over the chip), *lean* (the same for tensor cores, with fewer instructions), *per_step* (a cuBLAS product and one fused
kernel per step). Launches go to the current stream of the tensors' device. Memory is allocated through torch only and the
host never waits, so a CUDA graph can capture a call (after one call outside it). Kernels that `blocklist` names are not
planned. Where a GPU refuses a cooperative launch, another kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from types import ModuleType

import torch
from torch import Tensor

from fastlstm._torch_compat import current_cuda_stream, dynamo_skip
from fastlstm.backends import blocklist, cost_model, native
from fastlstm.backends.base import Backend, RefusedError, UnfitError, forced_kernels, register
from fastlstm.backends.cuda import decode, launch, launch_backward, layers, planner, status
from fastlstm.backends.cuda.launch import LaunchPlan
from fastlstm.backends.cuda.status import KERNELS
from fastlstm.backends.decoding import DecodeCall, DecoderRun, DecoderWeights
from fastlstm.backends.device import (
    MATHS,
    math_of,
    multiplies_wide,
    not_nvidia,
    product_into,
    products_as_cudnn,
)
from fastlstm.memory import gpu_address
from fastlstm.ops import weight_gradients
from fastlstm.ops.arguments import SAVE_CELLS, Grads, OpInputs, Saved, Spec

NAME, LAYERS = "cuda", "lean_layers"  # LAYERS: the kernel `lean` with several layers in one launch
DECODE = "decode"  # the sampling loop, always in float32; not a kernel of the op
_MOST_LEAN_ROWS = 2**31  # kernel `lean` counts rows in 32 bits, with a sign
_FUSED_BIAS_BYTES = 16 << 20  # of d_gates, from which on `lean` adds up the bias gradient itself


@register(NAME)
class Cuda(Backend):
    """The kernels of csrc/cuda on the current stream of the tensors' device."""

    kernel_names = tuple(kernel for kernel in KERNELS if kernel != DECODE)
    decodes = True

    def unsupported_call(self, spec: Spec) -> str | None:
        if spec.dtype in launch.TYPE_CODES:
            return None
        return f"dtype is {spec.dtype}; the CUDA kernels take float32, bfloat16 and float16"

    def unavailable(self, device: torch.device) -> str | None:
        return not_built() or _wrong_device(device)

    def no_plan(self, spec: Spec) -> str | None:
        try:
            _choose(spec)
        except ValueError as error:
            return str(error)
        return None

    def describe(self, spec: Spec) -> str:
        """One line: kernel, tiles, registers, shared memory, blocks, the predicted time of a step and its bound."""
        return f"cuda: {planner.sentence(_choose(spec).forward, _gpu(_index(spec.device)))}"

    def kernels(self, spec: Spec) -> tuple[str, ...]:
        chosen = _choose(spec)
        return (chosen.forward.kernel, chosen.backward.kernel)[: 1 + spec.training]

    def check(self, device: torch.device) -> None:
        status.check(device)

    def layers_together(self, spec: Spec, most: int, chained: bool) -> int:
        if spec.projected or self.unsupported_call(spec) or self.unavailable(spec.device):
            return 1
        return _together(spec, most, chained)[0]

    def describe_layers(self, spec: Spec, count: int, chained: bool) -> str:
        """One line: how many layers in one launch, and as `describe`."""
        _, chosen = _together(spec, count, chained)
        what = f"cuda: {count} {'layers' if chained else 'directions'} in one launch"
        if chosen is None:
            return f"{what} of lean, which is not planned now"
        return f"{what}, {planner.sentence(chosen.forward, _gpu(_index(spec.device)))}"

    def forward_layers(self, inputs: Sequence[OpInputs], chained: bool) -> list[tuple[Tensor, ...]]:
        spec = inputs[0].spec()
        index, (count, chosen) = _index(spec.device), _together(spec, len(inputs), chained)
        if count != len(inputs):
            raise UnfitError(f"{len(inputs)} layers in one launch were asked for, {count} fit")
        with _on_layers(index, spec) as gpu:
            return layers.forward(gpu, chosen, inputs, chained)

    def backward_layers(
        self, inputs: Sequence[OpInputs], saved: Sequence[Saved], grads: Sequence[Grads], chained: bool
    ) -> list[tuple[Tensor, ...]]:
        spec = inputs[0].spec()
        index, (_, chosen) = _index(spec.device), _together(spec, len(inputs), chained)
        if inputs[0].save == SAVE_CELLS:  # gates of all layers at once would take the memory that this mode saves
            raise UnfitError("backward computes gates again, layer by layer")
        if chosen is None or chosen.backward is None:
            raise UnfitError(f"no launch takes the backward recurrences of {len(inputs)} layers")
        with _on_layers(index, spec) as gpu:
            return layers.backward(gpu, chosen, inputs, saved, grads, chained)

    def cannot_decode(self, sizes: tuple[int, int, int, int], stored: torch.dtype, device: torch.device) -> str | None:
        if reason := self.unavailable(device):
            return reason
        index = _index(device)
        if reason := blocklist.blocked(NAME, index, _gpu(index).name, "float32").get(DECODE):
            return reason
        return decode.unfit(native.load().plan, _gpu(index).sms, _gpu(index).shared_kib, sizes, stored)

    def decoder(self, weights: DecoderWeights) -> DecoderRun:
        return _Decoder(weights)

    def forward(self, inputs: OpInputs) -> tuple[Tensor, ...]:
        return _run(self, inputs.spec(), 0, lambda gpu, chosen: launch.forward(gpu, chosen, inputs))

    def backward(self, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, ...]:
        return _run(
            self, inputs.spec(), 1, lambda gpu, chosen: launch_backward.backward(gpu, chosen, inputs, saved, grads)
        )

    def gradients(
        self, needs_grad: tuple[bool, ...], inputs: OpInputs, saved: Saved, grads: Grads
    ) -> tuple[Tensor | None, ...]:
        bias = None

        def call(gpu: _Gpu, chosen: LaunchPlan) -> tuple[Tensor, ...]:
            nonlocal bias
            bias = _bias_sums(chosen, saved.h) if needs_grad[3] else None
            return launch_backward.backward(gpu, chosen, inputs, saved, grads, bias)

        d_gates, dh_proj, dh0, dc0 = _run(self, inputs.spec(), 1, call)
        dbias = None if bias is None else bias.sum(0).to(d_gates.dtype)
        return *weight_gradients.of_weights(needs_grad, d_gates, dh_proj, inputs, saved, dbias), dh0, dc0


class _Decoder:
    """The sampling loop on the GPU of the weights; launches of at most `most_streams` streams."""

    def __init__(self, weights: DecoderWeights):
        lib = native.load().plan
        self.packed, self.most_streams = decode.Packed(lib, weights), lib.most_decode_streams

    def run(self, call: DecodeCall) -> str:
        index = _index(call.ids.device)
        gpu, (_, B) = _gpu(index), call.ids.shape
        if reason := blocklist.blocked(NAME, index, gpu.name, "float32").get(DECODE):
            raise UnfitError(f"backend 'cuda' cannot decode: {reason}")
        longest = max(map(len, call.stop), default=0)
        chosen = decode.plan(native.load().plan, gpu.sms, gpu.shared_kib, self.packed, B, longest)
        with _on(index, torch.float32, DECODE, "float32") as rt:
            try:
                decode.run(rt, chosen, self.packed, call)
            except _lib().RefusedLaunchError as error:
                blocklist.block(NAME, index, DECODE, MATHS, f"the GPU refused its launch ({error}); is it shared?")
                raise RefusedError(f"the GPU refused the launch of the sampling loop: {error}") from error
        return f"cuda: {decode.sentence(chosen, self.packed, B)}"


def _bias_sums(chosen: LaunchPlan, h: Tensor) -> Tensor | None:
    """Where `lean` is to add up d_gates over the rows: zeros (row_blocks, 4H), else None. h: all of the call.

    That saves reading d_gates once more. Where they are small, torch's sum over them takes little time and is kept.
    """
    if chosen.backward.kernel != "lean" or 4 * h.numel() * h.element_size() < _FUSED_BIAS_BYTES:
        return None
    return h.new_zeros(chosen.backward.t.row_blocks, 4 * h.shape[-1], dtype=torch.float32)


def _together(spec: Spec, most: int, chained: bool) -> tuple[int, LaunchPlan | None]:
    """How many of `most` layers or directions one launch takes, and its plan; 1 and None where each is better by itself."""
    only, index, math = forced_kernels.get().get(NAME, ""), _index(spec.device), math_of(spec.dtype)
    if only not in ("", LAYERS):
        return 1, None
    without = blocklist.blocked(NAME, index, _gpu(index).name, math, by_name=bool(only))
    if LAYERS in without or "lean" in without or spec.N >= _MOST_LEAN_ROWS:
        return 1, None
    tf32 = math == "tf32" and _gpu(index).tf32 > 0
    return _cached_together(index, spec.dtype, tf32, spec.H, spec.B, most, chained)


@lru_cache(maxsize=4096)
def _cached_together(
    index: int, dtype: torch.dtype, tf32: bool, H: int, B: int, most: int, chained: bool
) -> tuple[int, LaunchPlan | None]:
    lib, gpu, code = native.load().plan, _gpu(index), LaunchPlan(None, None, tf32).code(dtype)
    most = min(most, _lib().most_layers)
    count, forward, backward = planner.together(lib, gpu, code, H=H, B=B, most=most, chained=chained)
    return (1, None) if count == 1 else (count, LaunchPlan(forward, backward, tf32))


def not_built() -> str | None:
    """Return why this installation has no CUDA kernels, with what to do, or None."""
    reason = native.module_unavailable()
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


def _lib() -> ModuleType:
    return native.load().cuda


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _gpu(index: int) -> cost_model.Device:
    return cost_model.known(torch.cuda.get_device_name(index), *_lib().properties(index))


def _choose(spec: Spec) -> LaunchPlan:
    index, math, only = _index(spec.device), math_of(spec.dtype), forced_kernels.get().get(NAME, "")
    only = "lean" if only == LAYERS else only  # one layer by itself
    without = blocklist.blocked(NAME, index, _gpu(index).name, math, by_name=bool(only))
    if spec.N >= _MOST_LEAN_ROWS:
        without = {**without, "lean": f"it counts rows in 32 bits, and the call has {spec.N}"}
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
) -> LaunchPlan:
    code = LaunchPlan(None, None, tf32).code(dtype)
    sizes = {"H": H, "B": B, "projected": projected}
    return LaunchPlan(
        *planner.choices(native.load().plan, _gpu(index), code, **sizes, only=only, without=without), tf32
    )


class _Gpu:
    """A GPU as a `launch.Runtime` for one call, on the current stream of the device."""

    def __init__(self, index: int, status: Tensor):
        self.lib, self.index = _lib(), index
        self.stream = current_cuda_stream(index)
        self.status = status

    def use(self, name: str, tensor: Tensor | None, mode: str, dtype: torch.dtype, count: int) -> int:
        return gpu_address(name, tensor, self.index, dtype, count)

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        product_into(a, b, out)

    def product_type(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if multiplies_wide() else dtype


@contextmanager
def _named_as_cuda_errors() -> Iterator[None]:
    """Errors of the native launchers in torch's words, by which programs know that a device has failed.

    A launcher says "per_step_forward: an illegal memory access was encountered".
    """
    try:
        yield
    except RuntimeError as error:
        launcher, colon, _ = str(error).partition(": ")
        if type(error) is not RuntimeError or not colon or not hasattr(_lib(), launcher):
            raise
        raise RuntimeError(f"CUDA error: {error}") from error


@contextmanager
def _on(index: int, dtype: torch.dtype, *word: str) -> Iterator[_Gpu]:
    """A device as the current one, for torch and for the runtime inside fastlstm._C. word: kernel and math."""
    with torch.cuda.device(index), products_as_cudnn(dtype), _named_as_cuda_errors():
        _lib().set_device(index)
        status.raise_on(index)
        yield _Gpu(index, status.word(index, *word) if word else status.words(index)[:1])


@contextmanager
def _on_layers(index: int, spec: Spec) -> Iterator[_Gpu]:
    """`_on` for a launch of several layers; one that is refused did nothing, and no more are tried."""
    with _on(index, spec.dtype, LAYERS, math_of(spec.dtype)) as gpu:
        try:
            yield gpu
        except _lib().RefusedLaunchError as error:
            blocklist.block(NAME, index, LAYERS, MATHS, f"the GPU refused its launch ({error}); is it shared?")
            raise RefusedError(f"the GPU refused a launch of several layers: {error}") from error


def _plan(backend: Backend, spec: Spec) -> LaunchPlan:
    reason = backend.unsupported_call(spec) or backend.unavailable(spec.device)
    if reason is None:
        try:
            return _choose(spec)
        except ValueError as error:
            reason = str(error)
    raise UnfitError(f"backend 'cuda' cannot run this call: {reason}")


def _run(backend: Backend, spec: Spec, direction: int, call: Callable[[_Gpu, LaunchPlan], tuple]) -> tuple[Tensor, ...]:
    """One call; direction: 0 forward, 1 backward. A launch that is refused did nothing: all of it again without it."""
    chosen, math, index = _plan(backend, spec), math_of(spec.dtype), _index(spec.device)
    kernel = (chosen.forward, chosen.backward)[direction].kernel
    with _on(index, spec.dtype, kernel, math) as gpu:
        try:
            return call(gpu, chosen)
        except _lib().RefusedLaunchError as error:
            blocklist.block(NAME, index, kernel, MATHS, f"the GPU refused its launch ({error}); is it shared?")
    return _run(backend, spec, direction, call)


dynamo_skip(__name__)
