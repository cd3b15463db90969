"""The record of a verification: what passed and won on a GPU model, in the cache folder, and what follows for a call.

One file per GPU model, written whole or not at all. It holds only for the kernels and the torch that were verified.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import torch

from fastlstm.backends.common import Spec
from fastlstm.backends.device import allows_tf32

FORMAT = 1
MARGIN = 0.97  # a backend wins where it takes less than this share of torch's time: medians of equals differ by as much
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def folder() -> Path:
    """Where records are kept: FASTLSTM_CACHE, else fastlstm in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FASTLSTM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastlstm"


def path(gpu: str) -> Path:
    """The file of a GPU model."""
    return folder() / f"gpu-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


@cache
def identity() -> str:
    """A hash of what was verified: the native module, the Python around the kernels, torch's version."""
    here = Path(__file__).parent.parent
    files = sorted([*here.glob("_C*.so"), *(here / "backends").rglob("*.py"), here / "gpu_model.py"])
    digest = hashlib.sha256(torch.__version__.encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def write(gpu: str, record: dict) -> Path:
    """Write a record and return its path; a crash leaves the old one or none. Raises OSError where it cannot."""
    target = path(gpu)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=target.name, suffix=".partial", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "identity": identity(), **record}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    read.cache_clear()
    _decided.cache_clear()
    return target


@cache
def read(gpu: str) -> dict | None:
    """The record of a GPU model, read once a process; None without one, and for one of other kernels or torch."""
    try:
        found = json.loads(path(gpu).read_text(encoding="utf-8"))
        fits = (found["format"], found["identity"]) == (FORMAT, identity())
        return found if fits and isinstance(found["timings"], list) and isinstance(found["failed"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@cache
def _model(index: int) -> str:
    return torch.cuda.get_device_name(index)


def gpu_name(device: torch.device) -> str:
    """The model of a CUDA device; empty where torch sees none (a fake tensor's, say)."""
    if not torch.cuda.is_available():
        return ""
    return _model(torch.cuda.current_device() if device.index is None else device.index)


def choice(device: torch.device, spec: Spec) -> str | None:
    """Return the backend that passed and won for such calls on this GPU model, "torch" where none did, None: unverified."""
    return _decided(gpu_name(device), kind_of(spec), spec.H, spec.B, spec.T)


def failed(device: torch.device) -> frozenset[str]:
    """Return the backends that gave wrong results, or crashed, on this GPU model."""
    found = read(gpu_name(device))
    return frozenset() if found is None else frozenset(found["failed"])


def kind_of(spec: Spec) -> tuple[str, str, bool]:
    """What distinguishes calls beside their size: layout, arithmetic, training."""
    layout = "projected" if spec.projected else "packed" if spec.packed else "dense"
    tf32 = spec.dtype == torch.float32 and allows_tf32()
    return layout, "tf32" if tf32 else _NAMES.get(spec.dtype, str(spec.dtype)), spec.training


@lru_cache(maxsize=4096)
def _decided(gpu: str, kind: tuple[str, str, bool], H: int, B: int, T: int) -> str | None:
    found = read(gpu)
    return None if found is None else winner(found, kind, H, B, T)


def winner(record: dict, kind: tuple[str, str, bool], H: int, B: int, T: int) -> str:
    """The backend that beats torch's own path at all timed sizes around a call, or "torch".

    One that is slower at some neighbour is not used: nobody is slower for having swapped the module.
    """
    rows = [r for r in record["timings"] if (r["layout"], r["math"], r["training"]) == kind]
    for name, value in (("H", H), ("B", B), ("T", T)):
        around = _around({r[name] for r in rows}, value, longest=name == "T")
        rows = [r for r in rows if r[name] in around]
    if not rows:
        return "torch"
    candidates = set.intersection(*(set(r["seconds"]) for r in rows)) - {"torch", *record["failed"]}
    good = {c: _mean(rows, c) for c in candidates if all(_beats(r["seconds"], c) for r in rows)}
    return min(good, key=lambda name: (good[name], name)) if good else "torch"


def _around(known: Iterable[int], value: int, longest: bool) -> set[int]:
    """The neighbours of a size among the timed ones; none where it is more than twice beyond their ends.

    longest: beyond the upper end too, since time only repeats what a step costs.
    """
    sizes = sorted(known)
    if not sizes or 2 * value < sizes[0] or (value > 2 * sizes[-1] and not longest):
        return set()
    below = [s for s in sizes if s <= value]
    above = [s for s in sizes if s >= value]
    return {below[-1] if below else sizes[0], above[0] if above else sizes[-1]}


def _beats(seconds: dict[str, float], name: str) -> bool:
    """Whether a backend is faster than torch's own path, or the only one of the two that ran."""
    return "torch" not in seconds or seconds[name] < MARGIN * seconds["torch"]


def _mean(rows: list[dict], name: str) -> float:
    """Logarithm of the geometric mean of a backend's times."""
    return sum(math.log(r["seconds"][name]) for r in rows) / len(rows)
