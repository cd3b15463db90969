"""Chooses which backend runs a call, and says why.

`with fastlstm.backend("cpu"):` or FASTLSTM_BACKEND force one; a forced backend that cannot run raises with its reason.
Without that: CPU tensors go to the native kernels, or to torch's own path where the native module is missing or torch
was measured faster (`torch_wins`); CUDA tensors go to torch's own path unless `fastlstm doctor --verify` recorded
something faster for that GPU and the kernel that would run passed. What torch's path cannot do (resets, cell states) goes
to the first backend that can. A kernel that was recorded wrong on a GPU model is not planned there (backends/withheld.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from fastlstm import backends, native
from fastlstm.backends.common import BackendError, Spec, UnfitError, spec_of

__all__ = ["BackendError", "backend", "choose", "describe", "forced", "last_plan", "prefers_torch", "why_not"]

_Found = TypeVar("_Found")  # what a backend returns
_FORCEABLE = (*backends.NAMES, "torch")
_forced: ContextVar[str | None] = ContextVar("fastlstm_backend", default=None)
_last: ContextVar[tuple[ModuleType, Spec] | str] = ContextVar("fastlstm_last_plan", default="nothing has run yet")


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Force a backend inside a `with` block: cpu, cuda, triton, hostsim, reference or torch; None: choose as usual.

    Backward runs where forward ran, also when it is called outside the block or in another thread.
    """
    if name is not None and name not in _FORCEABLE:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(_FORCEABLE)}")
    token = _forced.set(name if name is not None else "")
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def again(name: str | None) -> Iterator[None]:
    """Backward of a call: under the backend that was forced on its forward, if one was, in whatever thread it runs."""
    if name is None:
        yield
    else:
        with backend(name):
            yield


def forced() -> str | None:
    """Return the name of the forced backend, or None. A `with` block goes before FASTLSTM_BACKEND."""
    name = _forced.get()
    if name is not None:
        return name or None
    name = os.environ.get("FASTLSTM_BACKEND")
    if name and name not in _FORCEABLE:
        raise BackendError(f"FASTLSTM_BACKEND is '{name}', expected one of {', '.join(_FORCEABLE)}")
    return name or None


def last_plan() -> str:
    """Return one line on what the last call in this context ran, beginning with the backend's name."""
    last = _last.get()
    return last if isinstance(last, str) else last[0].plan(last[1])


def note_plan(text: str) -> None:
    """Remember what ran, for `last_plan`."""
    _last.set(text)


def why_not(name: str, spec: Spec) -> str | None:
    """Return why a backend cannot run the call, or None."""
    module = backends.load(name)
    return f"the {name} backend is not part of this installation" if module is None else module.why_not(spec)


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
    return name if kernels and verify.trusts(spec.device, spec, name, kernels) else "torch"


def _planned(name: str, spec: Spec) -> tuple[str, ...]:
    """Return the kernels that a backend would run; none where it cannot run the call."""
    return () if why_not(name, spec) else getattr(backends.load(name), "planned", lambda spec: ("",))(spec)


@cache
def _hint() -> None:
    """Say once how to get the fast kernels on a GPU that no one has verified them on."""
    logging.getLogger("fastlstm").warning(
        "CUDA tensors run on torch's own LSTM: fastlstm's kernels have not been verified on this GPU model. "
        "`fastlstm doctor --verify` (at most three minutes) checks and times them and remembers the result."
    )


def choose(spec: Spec) -> str:
    """Return the op backend for a call; raises BackendError with the reason where a forced one cannot run."""
    name = forced()
    if name == "torch":
        raise BackendError(
            "backend 'torch' was asked for and cannot run this call: torch's own LSTM runs whole modules without "
            "resets, cell states or gates; use backend 'reference' or none"
        )
    if name is not None:
        reason = why_not(name, spec)
        if reason is not None:
            raise BackendError(f"backend '{name}' was asked for and cannot run this call: {reason}")
        return name
    verified = _verified(spec)
    order = _order(spec) if verified in (None, "torch") else (verified, *_order(spec))
    return next(name for name in order if why_not(name, spec) is None)


def torch_wins(dtype: torch.dtype, H: int, B: int, projected: bool, training: bool) -> bool:
    """Where torch's own path was measured faster for dense input on a CPU: large weights, many rows, AVX-512.

    benchmarks/results/cpu-avx512-large.csv and cpu-avx512-xeon-large.csv: forced, forward at H 512 and 1024 runs at 0.87 to
    0.96 of nn.LSTM's speed, training steps at H 1024 at 0.96 to 1.02, at H 512 above 1. With AVX2 (cpu-avx2.csv,
    cpu-avx2-epyc.csv) nothing is slower by more than these runs differ.
    """
    least = 1024 if training else 512
    large = least <= H and B >= 48
    return large and dtype == torch.float32 and not projected and native.load().isa() == "avx512"


def _torch_wins(spec: Spec) -> bool:
    dense = not (spec.packed or spec.token or spec.reset)
    return dense and torch_wins(spec.dtype, spec.H, spec.B, spec.projected, spec.training)


def prefers_torch(spec: Spec) -> bool:
    """Return whether a whole module call should take torch's own path (the caller knows that path can do it)."""
    name = forced()
    if name is not None:
        return name == "torch"
    if spec.device.type == "cpu":
        return why_not("cpu", spec) is not None or _torch_wins(spec)
    if spec.device.type != "cuda":
        return True
    record = _verified(spec)
    if record is None:
        _hint()
    return record in (None, "torch")


def compiled_prefers_torch(device: torch.device, dtype: torch.dtype, hidden_size: int, proj_size: int) -> bool:
    """`prefers_torch` while torch.compile traces: decided once, for a call of middling size."""
    dtype, T, B, P = dtype if dtype.is_floating_point else torch.float32, 64, 32, proj_size or hidden_size
    sizes = (T, B, T * B, hidden_size, 0, hidden_size, P)
    return prefers_torch(Spec(device, dtype, *sizes, False, False, bool(proj_size), False, False, 1, True))


# what torch.compiler.assume_constant_result does, without importing Dynamo (1.8 s)
compiled_prefers_torch._dynamo_marked_constant = True


def forward(
    x: Tensor | None,
    ids: Tensor | None,
    w_x: Tensor,
    bias: Tensor | None,
    w_hh: Tensor,
    w_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    batch_sizes: Tensor | None,
    offsets: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    save: int,
) -> tuple[Tensor, ...]:
    """Run the op's forward on the chosen backend; arguments and returns as in `fastlstm.reference`."""
    spec = spec_of(x, ids, w_x, w_hh, w_hr, h0, batch_sizes, reset, reverse, save)
    inputs = (x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save)
    return _run(spec, lambda module: module.forward(*inputs))


def _run(spec: Spec, call: Callable[[ModuleType], _Found]) -> _Found:
    """Call the chosen backend. One that learns at its launch that it cannot run the call is not asked again."""
    module = backends.load(choose(spec))
    _last.set((module, spec))
    try:
        return call(module)
    except UnfitError:
        if forced() is not None or why_not(module.NAME, spec) is None:
            raise
    return _run(spec, call)


def backward(dh, dc, dh_n, dc_n, *rest) -> tuple[Tensor, ...]:
    """Run the op's backward on the chosen backend; arguments and returns as in `fastlstm.reference`."""
    x, ids, w_x, _, w_hh, w_hr, h0, _, batch_sizes, _, reset, reverse, save, _, _, _ = rest
    spec = spec_of(x, ids, w_x, w_hh, w_hr, h0, batch_sizes, reset, reverse, save)
    return _run(spec, lambda module: module.backward(dh, dc, dh_n, dc_n, *rest))


def gradients(wanted: tuple[bool, ...], grads: tuple, inputs: tuple, outputs: tuple) -> tuple | None:
    """All gradients of a call in one, where the chosen backend has that; None where not. See `backends.cpu.gradients`."""
    x, ids, w_x, _, w_hh, w_hr, h0, _, batch_sizes, _, reset, reverse, save = inputs
    spec = spec_of(x, ids, w_x, w_hh, w_hr, h0, batch_sizes, reset, reverse, save)

    def call(module: ModuleType) -> tuple | None:
        return module.gradients(wanted, grads, inputs, outputs) if hasattr(module, "gradients") else None

    return _run(spec, call)


def describe(spec: Spec) -> str:
    """Return what each backend says of a call, one line each: its plan, or why it would not run."""
    lines = []
    for name in backends.NAMES:
        reason = why_not(name, spec)
        lines.append(backends.load(name).plan(spec) if reason is None else f"{name}: no, {reason}")
    return "\n".join(lines)
