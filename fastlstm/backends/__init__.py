"""The backends of the op, each a class in a module of its own, which is loaded at first use."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from fastlstm.backends.base import Backend, registered

_MODULES = {
    "cpu": "fastlstm.backends.cpu.backend",
    "cuda": "fastlstm.backends.cuda.backend",
    "triton": "fastlstm.backends.triton.backend",
    "reference": "fastlstm.backends.reference",
}


def names() -> tuple[str, ...]:
    """The backends that there are: the package's own, then those registered from elsewhere."""
    return (*_MODULES, *(name for name in registered() if name not in _MODULES))


def load(name: str) -> Backend:
    """Return a backend by its name; raises ValueError for a name that is none."""
    if name in _MODULES:
        return _load(name)
    if name not in registered():
        raise ValueError(f"backend is {name!r}, expected one of {', '.join((*names(), 'torch'))}")
    return registered()[name]


@cache
def _load(name: str) -> Backend:
    """One of the package's own, whole: a thread that comes while another one imports it waits."""
    import_module(_MODULES[name])
    return registered()[name]
