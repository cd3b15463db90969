"""The record of a verification: what passed and won on a GPU model, in the cache folder, and what follows for a call.

One file per GPU model, written whole or not at all. It holds only for the kernels and the torch that were verified.
What it has, beside versions and reasons: `passed` and `failed` by backend, kernel and math (passed: how many cases;
failed: what was wrong), `ratios` likewise (the worst error as a share of what is allowed), and `timings`, a row a size:

    seconds   contender → median seconds of one call; a backend runs there what the planner chooses
    kernels   backend → kernel → the same, forced
    planned   backend → the kernels that the planner chose
    cudnn     the algorithm that torch's rules give nn.LSTM (cudnn.py)
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

from fastlstm.backends.device import math_of
from fastlstm.ops.arguments import Spec

FORMAT = 3  # 2 had other names of kernels; a record of another format is ignored, and the hint says what to do
MARGIN = 0.97  # a backend wins where it takes less than this share of torch's time: medians of equals differ by as much


def folder() -> Path:
    """Where records are kept: FASTLSTM_CACHE, else fastlstm in XDG_CACHE_HOME or ~/.cache."""
    configured = os.environ.get("FASTLSTM_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastlstm"


def path(gpu: str) -> Path:
    """The file of a GPU model."""
    return folder() / f"gpu-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


@cache
def identity() -> str:
    """A hash of what was verified: the native module, the Python around the kernels, torch's version."""
    package = Path(__file__).parent.parent
    files = sorted(
        [*package.glob("_C*.so"), *(package / "backends").rglob("*.py"), *(package / "sampling").glob("*.py")]
    )
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
    forget()
    return target


def forget() -> None:
    """Read records anew from now on."""
    for cached in (read, _cached_winner, wrong_kernels, _passed):
        cached.cache_clear()


@cache
def read(gpu: str) -> dict | None:
    """The record of a GPU model, read once a process; None without one, and for one of other kernels or torch."""
    try:
        record = json.loads(path(gpu).read_text(encoding="utf-8"))
        valid = (record["format"], record["identity"]) == (FORMAT, identity())
        return record if valid and _well_formed(record) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _well_formed(record: dict) -> bool:
    """Whether what calls read has the right form."""
    groups = [kernels for name in ("passed", "failed") for kernels in record[name].values()]
    if not all(isinstance(maths, dict) for kernels in groups for maths in kernels.values()):
        return False
    keys = {"layout", "math", "training", "H", "B", "T"}
    return all(keys <= row.keys() and isinstance(row["seconds"], dict) for row in record["timings"])


@cache
def _model(index: int) -> str:
    return torch.cuda.get_device_name(index)


def gpu_name(device: torch.device) -> str:
    """The model of a CUDA device; empty where torch sees none (a fake tensor's, say)."""
    if not torch.cuda.is_available():
        return ""
    return _model(torch.cuda.current_device() if device.index is None else device.index)


def choice(device: torch.device, spec: Spec) -> str | None:
    """Return the backend that won for such calls on this GPU model, "torch" where none did, None where unverified."""
    return _cached_winner(gpu_name(device), call_type_of(spec), spec.H, spec.B, spec.T)


def all_passed(device: torch.device, spec: Spec, backend: str, kernels: tuple[str, ...]) -> bool:
    """Return whether all these kernels of a backend passed on this GPU model, as such a call multiplies."""
    return _passed(gpu_name(device), backend, math_of(spec.dtype)).issuperset(kernels)


def has_passed(device: torch.device, backend: str, kernel: str, math: str) -> bool:
    """Return whether a kernel of a backend that multiplies so passed on this GPU model."""
    return kernel in _passed(gpu_name(device), backend, math)


@lru_cache(maxsize=256)
def _passed(gpu: str, backend: str, math: str) -> frozenset[str]:
    return _kernels("passed", gpu, backend, math) - wrong_kernels(gpu, backend, math)


@lru_cache(maxsize=256)
def wrong_kernels(gpu: str, backend: str, math: str) -> frozenset[str]:
    """Return the kernels of a backend that gave wrong results, crashed or hung on a GPU model."""
    return _kernels("failed", gpu, backend, math)


def _kernels(group: str, gpu: str, backend: str, math: str) -> frozenset[str]:
    record = read(gpu)
    by_name = {} if record is None else record[group].get(backend, {})
    return frozenset(kernel for kernel, maths in by_name.items() if math in maths)


def call_type_of(spec: Spec) -> tuple[str, str, bool]:
    """What distinguishes calls beside their size: layout, arithmetic, training."""
    layout = "projected" if spec.projected else "packed" if spec.packed else "dense"
    return layout, math_of(spec.dtype), spec.training


@lru_cache(maxsize=4096)
def _cached_winner(gpu: str, call_type: tuple[str, str, bool], H: int, B: int, T: int) -> str | None:
    record = read(gpu)
    return None if record is None else winner(record, call_type, H, B, T)


def winner(record: dict, call_type: tuple[str, str, bool], H: int, B: int, T: int) -> str:
    """The backend that beats torch's own path at all timed sizes around a call, or "torch".

    One that is slower at some neighbour is not used: nobody is slower for having swapped the module.
    """
    rows = [r for r in record["timings"] if (r["layout"], r["math"], r["training"]) == call_type]
    for name, value in (("H", H), ("B", B), ("T", T)):
        near = _neighbours({r[name] for r in rows}, value, longest=name == "T")
        rows = [r for r in rows if r[name] in near]
    if not rows:
        return "torch"
    candidates = set.intersection(*(set(r["seconds"]) for r in rows)) - {"torch"}
    good = {c: _mean(rows, c) for c in candidates if all(_beats(r["seconds"], c) for r in rows)}
    return min(good, key=lambda name: (good[name], name)) if good else "torch"


def _neighbours(timed: Iterable[int], value: int, longest: bool) -> set[int]:
    """The neighbours of a size among the timed ones; none where it is more than twice beyond their ends.

    longest: beyond the upper end too, since time only repeats what a step costs.
    """
    sizes = sorted(timed)
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
