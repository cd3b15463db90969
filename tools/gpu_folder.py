"""Prepares one folder that is carried to a GPU machine and measured there: nothing is built or fetched on that machine.

    python -m tools.gpu_folder [--out build/gpu-day] [--pythons 3.10,3.11,3.12,3.13] [--triton PYTHON]    or: make gpu-day

The folder holds the package with the native module for each of those Pythons that has its headers here (CUDA kernels and
planner, no CPU kernels), benchmarks/, tools/, csrc/ (for the host simulation and for Nsight Compute),
tests/hostsim, the microbenchmarks `ubench`, the commit in COMMIT, and HOW, five lines on its use. PYTHON has the torch and
Triton of that machine and compiles Triton's kernels too (tools/triton_cache.py). The kernels are compiled once, for
FASTLSTM_CUDA_ARCHS (90a if that is not set), and give up waiting after 200 ms. All flags are CMakeLists.txt's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ARCHS = "90a"
TIMEOUT_MS = 200  # a hang costs a fifth of a second, not the minutes on the machine
MOST_BYTES = 40_000_000
COPIED = ("fastlstm", "benchmarks", "tools", "csrc", "tests")
MADE = ("COMMIT", "HOW", "triton-cache", "ubench")
OF_TESTS = ("__init__.py", "hostsim")  # a rehearsal runs on the simulator
LEFT_OUT = ("*.so", "__pycache__", "test_*.py", "conftest.py")
ASK = (
    "import json, sys, sysconfig; from pathlib import Path; v = sys.version_info;"
    "print(json.dumps([f'{v[0]}.{v[1]}', sysconfig.get_config_var('EXT_SUFFIX'),"
    " Path(sysconfig.get_path('include'), 'Python.h').exists()]))"
)
HOW = """\
Needs a GPU for code of sm_{archs}, a driver for CUDA 13, Python {pythons} with torch, numpy and triton; no network.
Here: TRITON_CACHE_DIR=$PWD/triton-cache python3 -m benchmarks.gpu_day --out RESULTS --seconds 585     (stops by itself)
Without a GPU, to see that all of it runs: python3 -m benchmarks.gpu_day --rehearse
The microbenchmarks alone (20 seconds): ./ubench > ubench.jsonl
Then, in a checkout of the commit in COMMIT, built: python -m tools.gpu_fit RESULTS/raw.jsonl --write, and build again
"""


@dataclass(frozen=True)
class Python:
    """An interpreter that has its headers; suffix: of its extension modules."""

    path: str
    version: str
    suffix: str


def candidates(version: str) -> list[str]:
    """Paths where a Python of that version may lie: this one, on PATH, pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    paths = [sys.executable if version == "{}.{}".format(*sys.version_info) else None, shutil.which(f"python{version}")]
    paths += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]
    return [path for path in paths if path]


def find_python(version: str) -> Python | str:
    """A Python of that version with its headers, or why there is none."""
    reason = "not found"
    for path in candidates(version):
        done = subprocess.run([path, "-c", ASK], capture_output=True, text=True)
        if done.returncode:  # a shim of pyenv for a version that is not chosen
            continue
        actual, suffix, headers = json.loads(done.stdout)
        if actual == version and headers:
            return Python(path, version, suffix)
        reason = f"{path} has no headers"
    return reason


def find_nvcc() -> str | None:
    """The nvcc that all builds use: CUDACXX, the system's, or PyPI's in this environment; None without one."""
    from_pypi = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/nvcc"))
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or (str(from_pypi[-1]) if from_pypi else None)


def kernels(build: Path, archs: str, jobs: int) -> list[list[str]]:
    """The commands that compile the kernels and the microbenchmarks."""
    options = {"FASTLSTM_CUDA_ARCHS": archs, "FASTLSTM_TIMEOUT_MS": str(TIMEOUT_MS)}
    return [
        _configure(build / "kernels", sys.executable, options),
        _build(build / "kernels", jobs, "kernels_cuda", "ubench"),
    ]


def module(build: Path, archs: str, jobs: int, python: Python) -> list[list[str]]:
    """The commands that compile the bindings for one Python and link them with the compiled kernels."""
    objects = build / "kernels" / "CMakeFiles" / "kernels_cuda.dir" / "csrc" / "cuda"
    names = sorted(path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
    options = {"FASTLSTM_CUDA_ARCHS": archs, "FASTLSTM_CUDA_OBJECTS": ";".join(f"{objects}/{name}.o" for name in names)}
    folder = build / python.version
    return [_configure(folder, python.path, options), _build(folder, jobs, "_C")]


def _configure(folder: Path, python: str, options: dict[str, str]) -> list[str]:
    import pybind11

    definitions = {
        "FASTLSTM_CPU": "off",
        "FASTLSTM_CUDA": "on",
        "FASTLSTM_WERROR": "on",
        "Python_EXECUTABLE": python,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        **options,
    }
    return ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), *(f"-D{k}={v}" for k, v in definitions.items())]


def _build(folder: Path, jobs: int, *targets: str) -> list[str]:
    return ["cmake", "--build", str(folder), "--parallel", str(jobs), "--target", *targets]


def run(commands: list[list[str]], folder: Path = ROOT) -> None:
    """Run the commands with this environment's cmake and ninja; raises SystemExit with what a failing one said."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **({"CUDACXX": nvcc} if (nvcc := find_nvcc()) else {})}
    for command in commands:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-6000:]}")


def commit() -> str:
    """The commit that is checked out, and whether there is more than it; "unknown" outside a checkout."""
    asked = [["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain"]]
    head, changes = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() for command in asked
    )
    return (head or "unknown") + ("+changes" if changes else "")


def copy(out: Path) -> None:
    """The Python of the folder, in place of what it held; raises SystemExit where that is not an earlier such folder."""
    if out.exists():
        other = sorted({path.name for path in out.iterdir()} - {*COPIED, *MADE})
        if other:
            raise SystemExit(f"{out} holds {', '.join(other[:3])}, which is not of this tool; give another --out")
        if results := sorted(str(path.relative_to(out)) for path in out.rglob("raw.jsonl")):
            raise SystemExit(f"{out} holds results ({', '.join(results)}); move them away, or give another --out")
        shutil.rmtree(out)
    for name in COPIED:
        shutil.copytree(ROOT / name, out / name, ignore=_left_out)


def _left_out(folder: str, names: list[str]) -> set[str]:
    """The names in a folder of the checkout that are not copied."""
    left_out = shutil.ignore_patterns(*LEFT_OUT)(folder, names)
    return left_out | set(names) - set(OF_TESTS) if Path(folder) == ROOT / "tests" else left_out


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _keep(source: Path, out: Path) -> None:
    shutil.copy(source, out)
    subprocess.run(["strip", "--strip-unneeded", str(out)], check=True)


def prepare(out: Path, versions: list[str], archs: str, jobs: int, triton: str | None = None) -> None:
    """Build everything and put the folder together; raises SystemExit where no Python was found or a build fails."""
    interpreters = {version: find_python(version) for version in versions}
    pythons = [python for python in interpreters.values() if isinstance(python, Python)]
    for version, python in interpreters.items():
        print(f"Python {version}: {python.path if isinstance(python, Python) else f'left out, {python}'}", flush=True)
    if not pythons:
        raise SystemExit("no Python with headers was found; install one of " + ", ".join(versions))
    build = ROOT / "build" / "gpu-build"
    written = commit()
    run(kernels(build, archs, jobs))
    for python in pythons:
        run(module(build, archs, jobs, python))
    copy(out)
    for python in pythons:
        _keep(build / python.version / f"_C{python.suffix}", out / "fastlstm" / f"_C{python.suffix}")
    _keep(build / "kernels" / "ubench", out / "ubench")
    (out / "COMMIT").write_text(written + "\n")
    (out / "HOW").write_text(HOW.format(archs=archs, pythons=", ".join(python.version for python in pythons)))
    if triton:
        run([[triton, "-m", "tools.triton_cache"]], out)
    held = size(out)
    print(f"{out}: {held / 1e6:.1f} MB, commit {written}, kernels for {archs}")
    if held > MOST_BYTES:
        raise SystemExit(
            f"{out} holds {held / 1e6:.1f} MB, more than {MOST_BYTES // 1_000_000}; build for fewer GPUs or Pythons"
        )


def main() -> None:
    """Prepare the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu-day", help="the folder; an earlier one is replaced"
    )
    parser.add_argument("--pythons", default=",".join(PYTHONS), help="versions of Python to build for")
    parser.add_argument("--triton", metavar="PYTHON", help="compile Triton's kernels by this Python's Triton, too")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    options = parser.parse_args()
    archs = os.environ.get("FASTLSTM_CUDA_ARCHS") or ARCHS
    prepare(options.out.absolute(), options.pythons.split(","), archs, options.jobs, options.triton)


if __name__ == "__main__":
    main()
