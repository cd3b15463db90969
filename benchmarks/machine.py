"""The machine and the software of a measurement, the GEMM rate, and the limit of the instruction set."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import fastlstm
from fastlstm.backends import native
from fastlstm.doctor import processor

# Both sides on AVX2: fastlstm, oneDNN, MKL and torch's own kernels. onnxruntime has no such switch.
AVX2 = {
    "FASTLSTM_ISA": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
}


def limit_isa(isa: str, module: str, argv: list[str]) -> None:
    """Restart `python -m module` with AVX2 as the limit in the environment, if asked: libraries read it when loaded."""
    if isa == "avx2" and any(os.environ.get(name) != value for name, value in AVX2.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *argv], {**os.environ, **AVX2})


def environment() -> dict[str, object]:
    """Return threads, date, machine, instruction sets, versions and commit, as fields of a `Row`."""
    return {
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "isa": native.load().isa() if native.unavailable() is None else "none",
        "torch_isa": torch.backends.cpu.get_cpu_capability().lower(),
        "onednn_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "default").lower(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastlstm": fastlstm.__version__,
        "onnxruntime": _version("onnxruntime"),
        "jax": _version("jax"),
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    """Return the short commit, with a plus sign if the tree has changes."""
    words = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*words, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*words, "diff", "--quiet", "HEAD", "--", ".."], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+" if changed else "")


@cache
def gemm_rate(threads: int, device: str = "cpu", dtype: torch.dtype = torch.float32, rounds: int = 5) -> float:
    """Return the median FLOP/s of a large torch matrix product with so many threads, measured once a process."""
    size = 2048 if device == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    before, times = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.mm(a, b)
        finish(device)
        times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2.0 * size**3 / statistics.median(times[1:])


def finish(device: str) -> None:
    """Wait until the device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()


def torch_threads_for(seconds: float) -> None:
    """Keep torch's threads busy for some seconds with a parallel operation."""
    values, end = torch.ones(1 << 18), time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.add(values, 1.0)
