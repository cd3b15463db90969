"""Chooses which backend runs a call, and says why.

`with fastlstm.backend("cpu"):` or FASTLSTM_BACKEND force one; a forced backend that cannot run raises with its reason.
Without that: CPU tensors go to the native kernels, or to torch's own path where the native module is missing; CUDA
tensors go to torch's own path unless `fastlstm doctor --verify` recorded something faster for that GPU. What torch's
path cannot do (resets, cell states) goes to the first backend that can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import util

from torch import Tensor

from fastlstm import backends
from fastlstm.backends.common import Spec, spec_of


class BackendError(RuntimeError):
    """A forced backend cannot run this call, or no backend can."""


def _from_environment() -> str | None:
    name = os.environ.get("FASTLSTM_BACKEND") or None
    if name is not None and name not in (*backends.NAMES, "torch"):
        raise BackendError(f"FASTLSTM_BACKEND is '{name}', expected one of {', '.join((*backends.NAMES, 'torch'))}")
    return name


_forced: ContextVar[str | None] = ContextVar("fastlstm_backend", default=_from_environment())
_last_plan: ContextVar[str] = ContextVar("fastlstm_last_plan", default="nothing has run yet")


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Force a backend inside a `with` block: cpu, cuda, triton, hostsim, reference or torch; None: choose as usual."""
    if name is not None and name not in (*backends.NAMES, "torch"):
        raise ValueError(f"backend is {name!r}, expected one of {', '.join((*backends.NAMES, 'torch'))}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """Return the name of the forced backend, or None."""
    return _forced.get()


def last_plan() -> str:
    """Return one line on what the last call in this context ran."""
    return _last_plan.get()


def note_plan(text: str) -> None:
    """Remember what ran, for `last_plan`."""
    _last_plan.set(text)


def why_not(name: str, spec: Spec) -> str | None:
    """Return why a backend cannot run the call, or None."""
    module = backends.load(name)
    return f"the {name} backend is not part of this installation" if module is None else module.why_not(spec)


def _order(spec: Spec) -> tuple[str, ...]:
    return ("cpu", "reference") if spec.device.type == "cpu" else ("cuda", "triton", "reference")


def _verified(spec: Spec) -> str | None:
    """Return the backend that `doctor --verify` recorded as right and fastest for this GPU, or None."""
    if spec.device.type == "cpu" or util.find_spec("fastlstm.verify") is None:
        return None
    from fastlstm import verify

    return verify.choice(spec.device, spec)


def choose(spec: Spec) -> str:
    """Return the op backend for a call; raises BackendError with the reason where a forced one cannot run."""
    name = _forced.get()
    if name is not None and name != "torch":
        reason = why_not(name, spec)
        if reason is not None:
            raise BackendError(f"backend '{name}' was asked for and cannot run this call: {reason}")
        return name
    verified = _verified(spec)
    order = _order(spec) if verified is None else (verified, *_order(spec))
    return next(candidate for candidate in order if why_not(candidate, spec) is None)


def prefers_torch(spec: Spec) -> bool:
    """Return whether a whole module call should take torch's own path (the caller knows that path can do it)."""
    name = _forced.get()
    if name is not None:
        return name == "torch"
    if spec.device.type == "cpu":
        return why_not("cpu", spec) is not None
    return _verified(spec) in (None, "torch")


def forward(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save):
    """Run the op's forward on the chosen backend."""
    spec = spec_of(x, ids, w_x, w_hh, w_hr, h0, batch_sizes, reset, reverse, save)
    module = backends.load(choose(spec))
    out = module.forward(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save)
    _last_plan.set(module.plan(spec))
    return out


def backward(
    dh, dc, dh_n, dc_n, x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save, h, c, gates
):
    """Run the op's backward on the chosen backend."""
    inputs = (x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save)
    spec = spec_of(x, ids, w_x, w_hh, w_hr, h0, batch_sizes, reset, reverse, save)
    return backends.load(choose(spec)).backward(dh, dc, dh_n, dc_n, *inputs, h, c, gates)


def describe(spec: Spec) -> str:
    """Return what would run for a call, one line, and why each other backend would not."""
    lines = []
    for name in backends.NAMES:
        reason = why_not(name, spec)
        lines.append(backends.load(name).plan(spec) if reason is None else f"{name}: no, {reason}")
    return "\n".join(lines)


__all__ = ["BackendError", "Tensor", "backend", "choose", "describe", "forced", "last_plan", "prefers_torch", "why_not"]
