"""What was measured on: card, clocks as found and under load, driver, versions, commit, the native module."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import GpuExecutor
from benchmarks.gpu_day.program import ROOT
from fastlstm import __version__
from fastlstm.backends import native

ASKED = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)


def items(executor: GpuExecutor) -> list[Item]:
    return [Item("versions"), Item("native"), Item("card"), Item("load")]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    yield {
        "what": item.what,
        **{"versions": versions, "native": module, "card": card, "load": load}[item.what](executor),
    }


def versions(executor: GpuExecutor) -> dict:
    values = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "numpy"):
        try:
            values[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            values[name] = None
    values |= {"cudnn": torch.backends.cudnn.version(), "fastlstm": __version__, "commit": commit()}
    return {**values, "cpus": os.cpu_count(), "kernel": platform.release(), "rehearsal": executor.rehearsal}


def commit() -> str:
    """The commit: of git, or of a file COMMIT where there is no repository."""
    file = ROOT / "COMMIT"
    if file.exists():
        return file.read_text().strip()
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return git.stdout.strip() or "unknown"


def module(executor: GpuExecutor) -> dict:
    reason = native.module_unavailable()
    if reason:
        return {"why_not": reason}
    extension = native.load()
    if not hasattr(extension, "cuda"):
        return {"file": Path(extension.__file__).name, "why_not": getattr(extension, "no_cuda", "no CUDA kernels")}
    columns = {
        "file": Path(extension.__file__).name,
        "archs": extension.cuda.archs,
        "missing": extension.cuda.missing(),
    }
    columns["timeout_ms"] = getattr(extension.cuda, "timeout_ms", None)
    if torch.cuda.is_available():
        columns["properties"] = extension.cuda.properties(0)
    return columns | {name: getattr(extension, name) for name in ("no_cpu",) if hasattr(extension, name)}


def card(executor: GpuExecutor) -> dict:
    if executor.rehearsal:
        return {"gpu": "none", "smi": parsed(CANNED)}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sms": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
        "smi": smi(),
    }


def smi() -> dict:
    """What nvidia-smi says of the first card. It is only asked; nothing is set."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    try:
        return parsed(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": measure.error_text(error)}


CANNED = "NVIDIA H100 80GB HBM3, 580.1, 345 MHz, 1980 MHz, 2619 MHz, 70.1 W, 700.00 W, 31"


def parsed(line: str) -> dict:
    return dict(zip(ASKED, (word.strip() for word in line.strip().split(",")), strict=False))


def load(executor: GpuExecutor) -> dict:
    """Clocks while the card multiplies, its rate of products in bfloat16, and of copies."""
    if executor.rehearsal:
        n, times = 64, 2
    else:
        n, times = 8192, 600
    a = torch.randn(n, n, device=executor.device).to(torch.bfloat16)
    out = torch.empty_like(a)
    one = measure.seconds(executor, lambda: torch.mm(a, a, out=out), rounds=3, target=0.02)
    for _ in range(times):  # about a second
        torch.mm(a, a, out=out)
    busy = {} if executor.rehearsal else smi()
    executor.sync()
    source = torch.empty(n * n * 4, dtype=torch.uint8, device=executor.device)
    copy = measure.seconds(executor, lambda: source.clone(), rounds=3, target=0.01)
    return {"smi": busy, "tflops": 2 * n**3 / one * 1e-12, "copy_gbs": 2 * source.numel() / copy * 1e-9}
