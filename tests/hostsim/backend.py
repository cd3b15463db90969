"""The CUDA kernels on a simulated GPU (tests/hostsim/sim) as the backend `hostsim`: for tests only, never chosen by itself.

`with settings(kernel="single_block", seed=3):` says which kernel runs, on which device, and in which order threads run. A fault
that the simulation finds is raised as a `Fault`. Importing this module registers the backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from fastlstm.backends import cost_model, load, native
from fastlstm.backends.base import Backend, BackendError, UnfitError, register
from fastlstm.backends.cuda import decode as cuda_decode
from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from fastlstm.backends.cuda import layers as cuda_layers
from fastlstm.backends.cuda import planner as cuda_planner
from fastlstm.backends.cuda import status as cuda_status
from fastlstm.backends.cuda.launch import LaunchPlan
from fastlstm.backends.decoding import DecodeCall, DecoderRun, DecoderWeights
from fastlstm.memory import is_array
from fastlstm.ops.arguments import Grads, OpInputs, Saved, Spec
from tests.hostsim import build
from tests.hostsim.report import with_source

FEW, SOME = ("-DFASTLSTM_LEAN_FEW=1",), ("-DFASTLSTM_LEAN_FEW=2",)  # of the instances of `lean`
TILING = ("unit_blocks", "row_blocks", "groups", "k_splits", "row_tiles", "phase", "gate_splits")


class Fault(RuntimeError):  # noqa: N818 - the simulation calls it so
    """The simulation found a fault in a kernel: a race, a bad address, a deadlock …"""


@dataclass(frozen=True)
class Settings:
    """What the simulated device is and does. kernel: None lets the planner choose."""

    kernel: str | None = None  # per_step, single_block, cooperative or lean
    forward: tuple[int, ...] | None = None  # the Tiling of that kernel, in the order of csrc/cuda/args.h
    backward: tuple[int, ...] | None = None
    sms: int = 5
    capability: int = 90
    shared_kib: int = 99  # of a block
    seed: int = 0
    flags: tuple[str, ...] = FEW  # further compiler flags; by default not all instances of `lean` are there
    csrc: Path = build.CSRC  # where the kernels' sources lie (a mutated copy, in tests)
    only: tuple[str, ...] = ()  # kernel files to take from there; empty: all
    tf32: bool = False
    layers: bool = False  # several layers, or both directions, in one launch where that fits
    layers_backward: bool = True  # and backward too
    half_products: bool = False  # products of half types come in their own type, as from an old torch


_settings = Settings()


@contextmanager
def settings(**changes) -> Iterator[None]:
    """Change the simulation inside a `with` block; see `Settings`."""
    global _settings
    before = _settings
    _settings = replace(before, **changes)
    try:
        yield
    finally:
        _settings = before


@lru_cache(maxsize=64)
def library(flags: tuple[str, ...] = FEW, csrc: Path = build.CSRC, only: tuple[str, ...] = ()) -> ModuleType:
    """The simulation with the kernels in a csrc folder; flags: further compiler flags; only: stems, empty for all."""
    cuda = build.CSRC / "cuda"
    planner = ("bindings_plan.cpp", "plan.cpp", "plan_decode.cpp", "cost_model.cpp")
    bindings = [cuda / name for name in ("bindings_cuda.cpp", *planner)]
    names = sorted(f.name for f in cuda.glob("*.cu"))
    kernels = [(csrc / "cuda" if not only or Path(n).stem in only else cuda) / n for n in names]
    return build.load("hostsim_kernels", kernels, bindings, flags=["-DFASTLSTM_HOSTSIM", *flags])


_status = torch.zeros(1, dtype=torch.int32)  # what kernels leave for the next call


class Simulated:
    """The simulated device as a `cuda_launch.Runtime`. What launches read and write is checked until the `with` block ends."""

    def __init__(self, module: ModuleType, stream: int = 0):
        self.module, self.stream = module, stream
        self.lib = module.cuda
        self.status = _status
        self.tensors: list[Tensor] = []  # kept, so that no address is used twice

    def __enter__(self) -> Simulated:
        self._raise_on()
        self.module.forget()
        self.module.seed(_settings.seed)
        shared = _settings.shared_kib << 10
        self.module.set_device(_settings.sms, shared, shared + 1024, 2048)
        return self

    def _raise_on(self) -> None:
        """Raise what an earlier launch left, once."""
        status = int(self.status[0])
        self.status[0] = 0
        if status:
            raise cuda_status.error(status, "the simulated GPU", "of it", self.lib.timeout_ms)

    def __exit__(self, error_type, error, _) -> None:
        self.module.forget()
        if isinstance(error, RuntimeError) and not isinstance(error, BackendError):
            raise Fault(with_source(str(error), self.module.__file__)) from None

    def use(self, name: str, tensor: Tensor | None, mode: str, dtype: torch.dtype, count: int) -> int:
        if tensor is None:
            return 0
        assert is_array(tensor, dtype, count), f"{name} has {tensor.numel()} elements of {tensor.dtype}"
        self.tensors.append(tensor)
        bytes_ = tensor.numel() * tensor.element_size()
        self.module.memory(tensor.data_ptr(), bytes_, name, mode != "in", mode != "out")
        return tensor.data_ptr()

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        out.copy_(a.float() @ b.float())

    def product_type(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if _settings.half_products else torch.float32


def _library() -> ModuleType:
    return library(_settings.flags, _settings.csrc, _settings.only)


def simulated() -> Simulated:
    """The simulated device with the kernels that the settings name."""
    return Simulated(_library())


def _device(lib: ModuleType | None = None) -> cost_model.Device:
    """An H100 cut down to what the settings say."""
    current, h100 = _settings, cost_model.known("H100", 90, 132, 227 << 10, lib)
    return replace(
        h100, name="simulated GPU", capability=current.capability, sms=current.sms, shared_kib=current.shared_kib
    )


def choose(spec: Spec, lib: ModuleType) -> LaunchPlan:
    """What runs a call under the settings; ValueError where a kernel or tiling they name does not fit."""
    tf32, device = _settings.tf32, cuda_planner.gpu(lib, _device(lib))
    code = LaunchPlan(None, None, tf32).code(spec.dtype)
    choices = []
    for backward, tiling in enumerate((_settings.forward, _settings.backward)):
        if tiling is not None:
            choices.append(_fit(lib, code, spec, bool(backward), tiling))
            continue
        only = _settings.kernel or ""
        choices.append(lib.choose(device, code, spec.H, spec.B, bool(backward), spec.projected, only))
        if choices[-1].blocks < 0:
            raise ValueError(choices[-1].why)
    return LaunchPlan(*choices, tf32)


def _fit(lib: ModuleType, code: int, spec: Spec, backward: bool, numbers: tuple[int, ...]):
    tiling = lib.Tiling()
    for name, value in zip(TILING, numbers, strict=True):
        setattr(tiling, name, value)
    return lib.fit(cuda_planner.gpu(lib, _device(lib)), code, spec.H, spec.B, backward, _settings.kernel, tiling)


@register("hostsim")
class HostSimulation(Backend):
    """The shipped CUDA kernels, compiled with g++ and run thread by thread on CPU tensors."""

    def unsupported_call(self, spec: Spec) -> str | None:
        if spec.dtype in cuda_launch.TYPE_CODES:
            return None
        return f"dtype is {spec.dtype}; the CUDA kernels take float32, bfloat16 and float16"

    def unavailable(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"tensors are on {device}; the simulation takes CPU tensors"
        return build.unavailable()

    def describe(self, spec: Spec) -> str:
        native_plan = None if native.module_unavailable() else native.load().plan  # the same planner, ready built
        lib = native_plan or _library().plan
        return f"hostsim: {cuda_planner.sentence(choose(spec, lib).forward, _device(lib))}"

    def layers_together(self, spec: Spec, most: int, chained: bool) -> int:
        return most if _settings.layers and self._layers(spec, most, chained) is not None else 1

    def describe_layers(self, spec: Spec, count: int, chained: bool) -> str:
        what = f"{count} {'layers' if chained else 'directions'} in one launch"
        return f"hostsim: {what}, {cuda_planner.sentence(self._layers(spec, count, chained), _device(_library().plan))}"

    def _layers(self, spec: Spec, count: int, chained: bool, backward: bool = False):
        lib = _library().plan
        code = LaunchPlan(None, None, _settings.tf32).code(spec.dtype)
        return cuda_planner.layers(
            lib, _device(lib), code, H=spec.H, B=spec.B, count=count, chained=chained, backward=backward
        )

    def forward_layers(self, layers: Sequence[OpInputs], chained: bool) -> list[tuple[Tensor, ...]]:
        choice = self._layers(layers[0].spec(), len(layers), chained)
        if choice is None:
            raise UnfitError(f"{len(layers)} layers do not fit one launch")
        with Simulated(_library()) as rt:
            return cuda_layers.forward(rt, LaunchPlan(choice, None, _settings.tf32), layers, chained)

    def backward_layers(
        self, layers: Sequence[OpInputs], saved: Sequence[Saved], grads: Sequence[Grads], chained: bool
    ) -> list[tuple[Tensor, ...]]:
        choice = self._layers(layers[0].spec(), len(layers), chained, backward=True)
        if choice is None or not _settings.layers_backward:
            raise UnfitError("no launch takes their backward recurrences")
        with Simulated(_library()) as rt:
            plan = LaunchPlan(None, choice, _settings.tf32)
            return cuda_layers.backward(rt, plan, layers, saved, grads, chained)

    def forward(self, inputs: OpInputs) -> tuple[Tensor, ...]:
        with simulated() as rt:
            return cuda_launch.forward(rt, choose(inputs.spec(), rt.module.plan), inputs)

    def backward(self, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, ...]:
        with simulated() as rt:
            return launch_backward.backward(rt, choose(inputs.spec(), rt.module.plan), inputs, saved, grads)

    def cannot_decode(self, sizes: tuple[int, int, int, int], stored: torch.dtype, device: torch.device) -> str | None:
        return cuda_decode.unfit(_library().plan, _settings.sms, _settings.shared_kib, sizes, stored)

    def decoder(self, weights: DecoderWeights) -> DecoderRun:
        return _Decoder(weights)


class _Decoder:
    """The sampling loop on the simulated device, as the settings of each call say."""

    def __init__(self, weights: DecoderWeights):
        lib = _library().plan
        self.packed, self.most_streams = cuda_decode.Packed(lib, weights), lib.most_decode_streams

    def run(self, call: DecodeCall) -> str:
        B, longest = call.ids.shape[1], max(map(len, call.stop), default=0)
        with simulated() as rt:
            chosen = cuda_decode.plan(rt.module.plan, _settings.sms, _settings.shared_kib, self.packed, B, longest)
            cuda_decode.run(rt, chosen, self.packed, call)
        return f"hostsim: {cuda_decode.sentence(chosen, self.packed, B)}"


BACKEND = load("hostsim")
