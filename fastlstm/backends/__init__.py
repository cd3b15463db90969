"""The backends of the op, each a module with NAME, why_not, plan, forward and backward; loaded at first use."""

from __future__ import annotations

from functools import cache
from importlib import import_module, util
from types import ModuleType

from fastlstm.untraced import leave_alone

NAMES = ("cpu", "cuda", "triton", "hostsim", "reference")


@cache
def load(name: str) -> ModuleType | None:
    """Return the backend's module, or None where this installation does not have it."""
    if name not in NAMES:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join((*NAMES, 'torch'))}")
    if util.find_spec(f"fastlstm.backends.{name}") is None:
        return None
    module = import_module(f"fastlstm.backends.{name}")
    leave_alone(module)
    return module
