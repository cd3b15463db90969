"""Chooses which backend runs a call, and says why.

`with fastlstm.backend("cpu"):` or FASTLSTM_BACKEND request one; a requested backend that cannot run raises with its reason.
Without that: CPU tensors go to the native kernels, or to torch's own path where the native module is missing or torch
was measured faster (`torch_is_faster`); CUDA tensors go to torch's own path unless `fastlstm doctor --verify` recorded
something faster for that GPU and the kernel that would run passed. What torch's path cannot do (resets, cell states) goes
to the first backend that can. A kernel that was recorded wrong on a GPU model is not planned there (backends/blocklist.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm._torch_compat import (
    constant_for_dynamo,
    dynamo_skip,
    forward_gradients_are_on,
    in_functorch,
    is_exporting,
)
from fastlstm.backends import native
from fastlstm.backends.base import Backend, BackendError, UnfitError, forced_kernels
from fastlstm.ops.arguments import SAVE_ALL, Grads, OpInputs, Saved, Spec

requested_name: ContextVar[str | None] = ContextVar("fastlstm_backend", default=None)
last_call: ContextVar[tuple[Backend, Spec] | tuple[Backend, Spec, int, bool] | str] = ContextVar(
    "fastlstm_last_plan", default="nothing has run yet"
)


def _requestable() -> tuple[str, ...]:
    return (*backends.names(), "torch")


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Request a backend inside a `with` block: cpu, cuda, triton, reference or torch; None: choose as usual.

    Backward runs where forward ran, also when it is called outside the block or in another thread.
    """
    if name is not None and name not in _requestable():
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(_requestable())}")
    token = requested_name.set(name if name is not None else "")
    try:
        yield
    finally:
        requested_name.reset(token)


class Request(NamedTuple):
    """What was asked for when a call was made: a backend, and a kernel of some backends."""

    backend: str | None
    kernels: Mapping[str, str]


def requested() -> Request:
    """Return what is asked for here. Context variables are those of this thread; a `Request` can go to another."""
    return Request(requested_backend(), forced_kernels.get())


@contextmanager
def with_requested(request: Request) -> Iterator[None]:
    """Backward of a call: under what was requested for its forward, if anything was, in whatever thread it runs."""
    token = forced_kernels.set(request.kernels) if request.kernels else None
    try:
        with nullcontext() if request.backend is None else backend(request.backend):
            yield
    finally:
        if token is not None:
            forced_kernels.reset(token)


def requested_backend() -> str | None:
    """Return the name of the requested backend, or None. A `with` block goes before FASTLSTM_BACKEND."""
    name = requested_name.get()
    if name is not None:
        return name or None
    name = os.environ.get("FASTLSTM_BACKEND")
    if name and name not in _requestable():
        raise BackendError(f"FASTLSTM_BACKEND is '{name}', expected one of {', '.join(_requestable())}")
    return name or None


def last_plan() -> str:
    """Return one line on what the last call in this context ran, beginning with the backend's name."""
    last = last_call.get()
    if isinstance(last, str):
        return last
    backend, *call = last
    return backend.describe(*call) if len(call) == 1 else backend.describe_layers(*call)


def record_plan(text: str) -> None:
    """Remember what ran, for `last_plan`."""
    last_call.set(text)


def unsupported_reason(name: str, spec: Spec) -> str | None:
    """Return why a backend cannot run the call, or None."""
    return backends.load(name).unsupported_reason(spec)


def _order(spec: Spec) -> tuple[str, ...]:
    kinds = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
    return kinds.get(spec.device.type, ("reference",))


@cache
def _verify_module() -> ModuleType:
    return import_module("fastlstm.verify")


def _verified(spec: Spec) -> str | None:
    """Return what `doctor --verify` recorded as right and fastest for this GPU and call, or None.

    A backend whose kernel for this very call did not pass (found wrong, not checked, or another one has taken its place)
    is not it.
    """
    if spec.device.type != "cuda":
        return None
    verify = _verify_module()
    name = verify.choice(spec.device, spec)
    if name in (None, "torch"):
        return name
    kernels = _planned(name, spec)
    return name if kernels and verify.all_passed(spec.device, spec, name, kernels) else "torch"


def _planned(name: str, spec: Spec) -> tuple[str, ...]:
    """Return the kernels that a backend would run; none where it cannot run the call."""
    return () if unsupported_reason(name, spec) else backends.load(name).kernels(spec)


@cache
def _hint() -> None:
    """Say once how to get the fast kernels on a GPU that no one has verified them on."""
    logging.getLogger("fastlstm").warning(
        "CUDA tensors run on torch's own LSTM: fastlstm's kernels have not been verified on this GPU model. "
        "`fastlstm doctor --verify` (at most three minutes) checks and times them and remembers the result."
    )


def choose(spec: Spec) -> str:
    """Return the op backend for a call; raises BackendError with the reason where a forced one cannot run."""
    name = requested_backend()
    if name == "torch":
        raise BackendError(
            "backend 'torch' was asked for and cannot run this call: torch's own LSTM runs whole modules without "
            "resets, cell states or gates; use backend 'reference' or none"
        )
    if forward_gradients_are_on():
        return "reference"  # ops/autograd.py runs it, whatever was requested
    if name is not None:
        reason = unsupported_reason(name, spec)
        if reason is not None:
            raise BackendError(f"backend '{name}' was asked for and cannot run this call: {reason}")
        return name
    verified = _verified(spec)
    order = _order(spec) if verified in (None, "torch") else (verified, *_order(spec))
    return next(name for name in order if unsupported_reason(name, spec) is None)


def torch_is_faster(spec: Spec) -> bool:
    """Where torch's own path was measured faster for dense input on a CPU: large weights, many rows, AVX-512 on AMD.

    benchmarks/results/cpu-avx512-large.csv (an EPYC, with tiles of 12 x 32): forced, forward at H 512 and 1024 runs at 0.87
    to 0.96 of nn.LSTM's speed, training steps at H 1024 at 0.96 to 1.02, at H 512 above 1. On an Intel Xeon
    (cpu-avx512-xeon.csv), and with AVX2 (cpu-avx2-xeon.csv, cpu-avx2-epyc.csv), nothing is slower by more than these runs
    differ.
    """
    if spec.packed or spec.token or spec.reset or spec.projected or spec.dtype != torch.float32:
        return False
    least = 1024 if spec.training else 512
    if spec.B < 48 or least > spec.H:
        return False
    module = native.load()
    return module.isa() in ("avx512", "avx512_bf16", "amx") and not module.is_intel()  # the same kernels in float32


def prefers_torch(spec: Spec) -> bool:
    """Return whether a whole module call should take torch's own path (the caller knows that path can do it)."""
    name = requested_backend()
    if name is not None:
        return name == "torch"
    if spec.device.type == "cpu":
        return unsupported_reason("cpu", spec) is not None or torch_is_faster(spec)
    if spec.device.type != "cuda":
        return True
    record = _verified(spec)
    if record is None:
        _hint()
    return record in (None, "torch")


@constant_for_dynamo
def compiled_prefers_torch(device: torch.device, dtype: torch.dtype, hidden_size: int, proj_size: int) -> bool:
    """`prefers_torch` while torch.compile traces: decided once, for a call of middling size."""
    dtype, T, B, P = dtype if dtype.is_floating_point else torch.float32, 64, 32, proj_size or hidden_size
    sizes = (T, B, T * B, hidden_size, 0, hidden_size, P)
    return prefers_torch(Spec(device, dtype, *sizes, False, False, bool(proj_size), False, False, SAVE_ALL))


@constant_for_dynamo
def compiled_fuses(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a compiled call goes to the CPU kernels as one node, decided once, while torch.compile traces.

    Inside a transform of torch.func, with forward gradients, under autocast and in torch.export the op of one layer takes
    part: it has rules for them, and an exported program keeps it whatever machine it was exported on.
    """
    if device.type != "cpu" or dtype not in (torch.float32, torch.float64) or requested_backend() not in (None, "cpu"):
        return False
    transformed = in_functorch() or forward_gradients_are_on() or torch.is_autocast_enabled("cpu") or is_exporting()
    return not transformed and native.unavailable() is None


def _run(spec: Spec, method: str, *args: object) -> tuple | None:
    """Call a method of the chosen backend. One that learns at its launch that it cannot run the call is not asked again."""
    while True:
        chosen = backends.load(choose(spec))
        last_call.set((chosen, spec))
        try:
            return getattr(chosen, method)(*args)
        except UnfitError:
            if requested_backend() is not None or chosen.unsupported_reason(spec) is None:
                raise


def forward(inputs: OpInputs) -> tuple[Tensor, ...]:
    """Run the op's forward on the chosen backend; returns as `fastlstm.ops.reference.forward`."""
    return _run(inputs.spec(), "forward", inputs)


def layers_together(spec: Spec, most: int, chained: bool) -> int:
    """Return how many of `most` layers (chained) or directions one launch runs; 1 where each is a launch of its own.

    A backend that was not asked for by name must have passed `fastlstm doctor --verify` with such launches too.
    """
    name = choose(spec)
    count = backends.load(name).layers_together(spec, most, chained)
    if count > 1 and requested_backend() is None:
        verify = _verify_module()
        if not verify.all_passed(spec.device, spec, name, ("lean_layers",)):
            return 1
    return count


def forward_layers(layers: Sequence[OpInputs], chained: bool) -> list[tuple[Tensor, ...]] | None:
    """Run layers or directions in one launch; of each what `forward` returns. None where the launch was refused."""
    spec = layers[0].spec()
    chosen = backends.load(choose(spec))
    try:
        results = chosen.forward_layers(layers, chained)
    except UnfitError:
        return None
    last_call.set((chosen, spec, len(layers), chained))
    return results


def backward_layers(
    layers: Sequence[OpInputs], saved: Sequence[Saved], grads: Sequence[Grads], chained: bool
) -> list[tuple[Tensor, ...]] | None:
    """Run the backward recurrences of what `forward_layers` ran in one launch; None where they do not fit one."""
    chosen = backends.load(choose(layers[0].spec()))
    try:
        return chosen.backward_layers(layers, saved, grads, chained)
    except UnfitError:
        return None


def decoding_backend(sizes: tuple[int, int, int, int], stored: torch.dtype, device: torch.device) -> str | None:
    """Return the backend whose sampling loop draws from a model, or None where it is drawn in torch operations.

    One that was not asked for by name must have passed `fastlstm doctor --verify` with that loop. Raises BackendError where
    a requested one cannot. sizes: layers, units, features of h, ids; stored: the type of the weights.
    """
    name = requested_backend()
    if name is not None:
        reason = backends.load(name).cannot_decode(sizes, stored, device)
        if reason is not None:
            raise BackendError(f"backend '{name}' was asked for and cannot decode: {reason}")
        return name
    if device.type != "cuda" or backends.load("cuda").cannot_decode(sizes, stored, device) is not None:
        return None
    return "cuda" if _verify_module().has_passed(device, "cuda", "decode", "float32") else None


def backward(inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, ...]:
    """Run the op's backward on the chosen backend; returns as `fastlstm.ops.reference.backward`."""
    return _run(inputs.spec(), "backward", inputs, saved, grads)


def gradients(needs_grad: tuple[bool, ...], inputs: OpInputs, saved: Saved, grads: Grads) -> tuple | None:
    """All gradients of a call in one, where the chosen backend has that; see `Backend.gradients`."""
    return _run(inputs.spec(), "gradients", needs_grad, inputs, saved, grads)


def describe(spec: Spec) -> str:
    """Return what each backend says of a call, one line each: its plan, or why it would not run."""
    lines = []
    for name in backends.names():
        reason = unsupported_reason(name, spec)
        lines.append(backends.load(name).describe(spec) if reason is None else f"{name}: no, {reason}")
    return "\n".join(lines)


dynamo_skip(__name__)
