"""Build the native module under AddressSanitizer and UBSan, and run the tests that reach it: `make test-asan`.

    python tools/asan.py [pytest arguments]

The tree is copied to build/asan/tree, so that the module beside the sources stays as it is. Python's own allocations are
not watched (they would be reported as leaks); every array that a kernel reads or writes is. The first report ends the run.
"""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "asan"
TREE = BUILD / "tree"
TESTS = (
    *("tests/backends/cpu/test_boundary.py", "tests/backends/cpu/test_arguments.py"),
    *("tests/backends/cpu/test_small_call.py", "tests/backends/cpu/test_backend.py"),
    *("tests/modules/test_stream.py", "tests/modules/test_saved_tensors.py", "tests/sampling/test_kernel.py"),
    "tests/fuzz/test_calls.py",
)
COPIED = ("fastlstm", "tests", "csrc", "benchmarks", "tools", "pyproject.toml")


def runtimes(compiler: str = "g++") -> list[str] | None:
    """The sanitizers' libraries, to be loaded first; None where the compiler has none."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):  # the last: else exceptions are not seen as thrown
        path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(path) or not os.path.exists(path):
            return None
        found.append(path)
    return found


def build() -> None:
    """Compile fastlstm._C with sanitizers into the copied tree."""
    configure = ["cmake", "-S", ROOT, "-B", BUILD / "cmake", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"]
    flags = ["-DFASTLSTM_SANITIZE=address,undefined", "-DFASTLSTM_CUDA=off", "-DCMAKE_CXX_FLAGS=-O1"]
    python = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={BUILD / 'module'}"]
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    )
    subprocess.run([*configure, *flags, *python, f"-Dpybind11_DIR={pybind11.stdout.strip()}"], check=True)
    subprocess.run(["cmake", "--build", BUILD / "cmake"], check=True)


def copy_tree() -> None:
    """The sources and tests as they are now, with the module that was built."""
    shutil.rmtree(TREE, ignore_errors=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, TREE / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy2(ROOT / name, TREE / name)
    module = next((BUILD / "module").glob(f"_C*{importlib.machinery.EXTENSION_SUFFIXES[0]}"))
    shutil.copy2(module, TREE / "fastlstm" / module.name)


def environment(libraries: list[str]) -> dict[str, str]:
    """Where the sanitizers write, and what they stop at."""
    return os.environ | {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=1:allocator_may_return_null=1:log_path={BUILD / 'report'}",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:log_path={BUILD / 'report'}",
        "PYTHONPATH": str(TREE),
        "FASTLSTM_SANITIZED": "1",
    }


def main(arguments: list[str]) -> int:
    """Build, run, and print every report; 0 if there is none and the tests pass."""
    libraries = runtimes()
    if libraries is None:
        print("tools/asan.py needs g++ with libasan and libubsan; install the compiler's sanitizer libraries")
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    for report in BUILD.glob("report.*"):
        report.unlink()
    build()
    copy_tree()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:faulthandler",
        *(arguments or TESTS),
    ]
    done = subprocess.run(command, cwd=TREE, env=environment(libraries))
    reports = sorted(BUILD.glob("report.*"))
    for report in reports:
        print(report.read_text())
    print(f"{len(reports)} reports of AddressSanitizer and UBSan; tests ended with {done.returncode}")
    return 1 if reports else done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
