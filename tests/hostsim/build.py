"""Builds the host simulation with g++ when a test first asks for it.

The simulation's own files (tests/hostsim/sim) are compiled plainly; kernels are compiled with -fsanitize=thread, which makes
every memory access call a hook that the simulation provides. Objects are cached in build/hostsim by the content of all
files they can depend on, so a changed kernel is never run stale.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SIMULATOR = ROOT / "tests" / "hostsim" / "sim"
BUILD = Path(os.environ.get("FASTLSTM_BUILD", ROOT / "build")) / "hostsim"
_BOTH = [
    f"-I{SIMULATOR.parent}",
    "-std=c++20",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-threadsafe-statics",
    "-Wall",
    "-Wextra",
]
_PLAIN = [*_BOTH, "-O2"]
_KERNEL = [*_BOTH, "-O1", "-Wno-unknown-pragmas", "-x", "c++", "-fsanitize=thread", "-DFASTLSTM_HOSTSIM"]


def unavailable() -> str | None:
    """Return why the simulation cannot be built here, or None."""
    if not (SIMULATOR / "engine.h").exists():
        return f"the sources in {SIMULATOR} are not there; the simulation runs from a checkout of the repository"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the simulation switches stacks in x86-64 assembly and this machine is {platform.machine()}"
    if shutil.which("g++") is None:
        return "g++ is not on the path; install it"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed; pip install pybind11"
    return None


def load(
    name: str,
    kernels: Sequence[Path],
    bindings: Sequence[Path] = (),
    *,
    flags: Sequence[str] = (),
) -> ModuleType:
    """Build (or find built) and import a simulation with these kernels.

    kernels: files compiled with hooks; bindings: files compiled plainly, one of which defines bind_kernels;
    flags: further compiler flags for both. A kernel that lies in a copy of csrc/ takes its headers from there.
    Raises RuntimeError with the compiler's words.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = _link(name, kernels, bindings, list(flags))
    unique = f"{library.parent.name}.{name}"  # pybind11 gives one module to all libraries of one name
    spec = importlib.util.spec_from_file_location(unique, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _link(name: str, kernels: Sequence[Path], bindings: Sequence[Path], flags: list[str]) -> Path:
    import pybind11

    plain = [*_PLAIN, f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    jobs = [(f, [*plain, f"-DHOSTSIM_MODULE={name}"] if f.name == "module.cpp" else plain) for f in _simulation()]
    jobs += [(f, [*plain, *flags]) for f in bindings]
    jobs += [(f, [*_KERNEL, *flags]) for f in kernels]
    objects = [_object(*job) for job in jobs]
    missing = [(job, target) for job, target in zip(jobs, objects, strict=True) if not target.exists()]
    if missing:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(lambda one: _compile(*one[0], one[1]), missing))
    key = hashlib.sha256("".join(o.name for o in objects).encode()).hexdigest()[:16]
    library = BUILD / key / f"{name}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        link_flags = [f for f in flags if f.startswith("--coverage")]
        _run(["g++", "-shared", "-o", str(library), *map(str, objects), *link_flags])
    return library


def _simulation() -> list[Path]:
    return sorted(SIMULATOR.glob("*.cpp"))


def _include(source: Path) -> Path:
    return source.parents[1] if source.parent.name == "cuda" else CSRC


def _object(source: Path, flags: list[str]) -> Path:
    """Where the object of this source, as it is now, lies or will lie."""
    texts = [p.read_bytes() for p in sorted(closure(source, _include(source)))]
    key = hashlib.sha256(b"\0".join([*map(str.encode, flags), *texts])).hexdigest()[:16]
    return BUILD / f"{source.stem}-{key}.o"


def _compile(source: Path, flags: list[str], target: Path) -> None:
    partial = target.with_suffix(".partial.o")
    _run(["g++", *flags, f"-I{_include(source)}", "-c", str(source), "-o", str(partial)])
    partial.rename(target)


def closure(source: Path, include: Path = CSRC) -> set[Path]:
    """The source and every file of the project that it includes. An object is kept by their contents, wherever they lie."""
    files, waiting = set(), [source.resolve()]
    while waiting:
        file = waiting.pop()
        files.add(file)
        for name in re.findall(r'^#include "(.+)"', file.read_text(), re.MULTILINE):
            candidates = (file.parent / name, include / name, SIMULATOR.parent / name)
            waiting += [c.resolve() for c in candidates if c.exists() and c.resolve() not in files][:1]
    return files


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the host simulation could not be built:\n{' '.join(command)}\n{done.stderr[-4000:]}")
