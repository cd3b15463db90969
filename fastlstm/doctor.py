"""What `fastlstm doctor` reports: versions, platform, threads, and which backends can run here.

For each backend that cannot, why and what to do, in its own words: every backend answers `why_not` for a small call.
"""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastlstm import backends, dispatch
from fastlstm.backends import native
from fastlstm.ops.arguments import SAVE_ALL, Spec

from ._version import __version__

DESCRIPTIONS = {
    "cpu": "fused C++ kernels",
    "cuda": "fused CUDA kernels",
    "triton": "fused Triton kernels",
    "reference": "plain torch, one step at a time: the definition",
    "torch": "torch's own LSTM: oneDNN on the CPU, cuDNN on a GPU",
}


def small_call(device: torch.device) -> Spec:
    """A plain training call: 50 steps of 50 sequences through 128 units."""
    sizes = {"T": 50, "B": 50, "N": 2500, "I": 128, "V": 0, "H": 128, "P": 128}
    flags = {"packed": False, "token": False, "projected": False, "reverse": False, "reset": False}
    return Spec(device=device, dtype=torch.float32, **sizes, **flags, save=SAVE_ALL)


def versions() -> dict[str, str]:
    """Names and versions of what matters here."""
    names = {"fastlstm": __version__, "torch": torch.__version__, "Python": platform.python_version()}
    for name in ("triton", "numpy", "safetensors"):
        try:
            names[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            names[name] = "not installed"
    return names


def processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def openmp_runtimes() -> list[str]:
    """The OpenMP libraries that are loaded; more than one is a risk (oversubscription, rarely a crash)."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted(set(re.findall(r"/([^/\s]*(?:libgomp|libiomp|libomp)[^/\s]*)$", maps, re.M)))


def gpus() -> list[str]:
    """Name, compute capability and memory of each GPU."""
    lines = []
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        lines.append(f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB")
    return lines


def instruction_set() -> str:
    """The instruction set the native kernels use, and what else this machine could."""
    reason = native.unavailable()
    if reason is not None:
        return f"none: {reason}"
    module = native.load()
    others = [name for name in module.isa_names() if name != module.isa()]
    return module.isa() + (f" (also possible: {', '.join(others)}; FASTLSTM_ISA chooses)" if others else "")


def cuda_kernels() -> str:
    """The GPU architectures that the native module has kernels for."""
    if native.module_unavailable() is not None:
        return "none: there is no native module"
    module = native.load()
    if not hasattr(module, "cuda"):
        return f"none, since {module.no_cuda}"
    archs = module.cuda.archs.split(",")
    newer = ", and what is newer" if any(not arch.endswith("a") for arch in archs) else " alone"  # PTX of the newest
    return f"for {', '.join(f'sm_{arch}' for arch in archs)}{newer}"


def facts() -> dict[str, str]:
    """What this machine is and how torch is set up on it."""
    limits = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    runtimes = openmp_runtimes()
    forced = dispatch.requested_backend()
    return {
        **versions(),
        "platform": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "instructions": instruction_set(),
        "CUDA kernels": cuda_kernels(),
        "threads": f"{torch.get_num_threads()}" + (f" ({', '.join(limits)})" if limits else ""),
        "OpenMP": (", ".join(runtimes) or "none loaded")
        + (": more than one runtime; remove all but torch's if programs hang or run slow" if len(runtimes) > 1 else ""),
        "GPU": "; ".join(gpus()) or _no_gpu(),
        **({"backend": f"{forced}, forced by FASTLSTM_BACKEND"} if forced else {}),
    }


def _no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "none that torch can use: this torch is built for the CPU alone (pytorch.org has builds for CUDA)"
    return "none that torch can see (nvidia-smi tells whether the driver does)"


def unsupported_reasons() -> dict[str, str | None]:
    """Every backend, and why it cannot run a plain call here, None where it can. A GPU backend is asked about a GPU."""
    gpu = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    devices = {"cuda": gpu, "triton": gpu}
    reasons = {name: _unsupported_reason(name, devices.get(name, torch.device("cpu"))) for name in backends.names()}
    return {**reasons, "torch": None}


def _unsupported_reason(name: str, device: torch.device) -> str | None:
    try:
        return dispatch.unsupported_reason(name, small_call(device))
    except Exception as error:  # whatever is broken in an installation, the report goes on
        return f"it failed when asked ({type(error).__name__}: {error}); reinstall fastlstm and what it builds on"


def report(console: Console) -> None:
    """Print it all."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts().items():
        grid.add_row(name, Text(value))
    console.print(grid)
    console.print()
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    reasons = unsupported_reasons()
    for name, reason in reasons.items():
        if reason is None:
            table.add_row(Text("✓", "green"), Text(name, "bold"), Text(f"can run: {DESCRIPTIONS.get(name, name)}"))
        else:
            table.add_row(Text("–", "yellow"), Text(name, "bold"), Text(f"cannot run: {reason}"))
    console.print(table)
    chosen = dispatch.requested_backend() or ("cpu" if reasons["cpu"] is None else "torch")
    console.print(Text.assemble("\nA call on the CPU runs on ", (chosen, "bold green"), "."))
