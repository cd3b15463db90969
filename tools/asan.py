"""Build the native module under AddressSanitizer and UBSan, and run the tests that reach it: `make test-asan`.

    python tools/asan.py [--baseline] [pytest arguments]

--baseline builds the kernels for one instruction set alone, a third of the work: what the slow suite does.
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
    *("tests/backends/cpu/test_bfloat16.py", "tests/backends/cpu/test_int8.py", "tests/fuzz/test_calls.py"),
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


def build(baseline: bool) -> None:
    """Compile fastlstm._C with sanitizers."""
    configure = ["cmake", "-S", ROOT, "-B", BUILD / "cmake", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"]
    flags = [
        f"-DFASTLSTM_BASELINE_ONLY={'ON' if baseline else 'OFF'}",
        "-DFASTLSTM_SANITIZE=address,undefined",
        "-DFASTLSTM_CUDA=off",
        "-DCMAKE_CXX_FLAGS=-O1",
    ]
    python = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={BUILD / 'module'}"]
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    )
    tools = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # cmake and ninja
    subprocess.run([*configure, *flags, *python, f"-Dpybind11_DIR={pybind11.stdout.strip()}"], env=tools, check=True)
    subprocess.run(["cmake", "--build", BUILD / "cmake"], env=tools, check=True)


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
    """Where the sanitizers write, and what they stop at. Freed memory is kept within the fuzzer's limit of growth."""
    return os.environ | {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(TREE),
    }


def main(arguments: list[str]) -> int:
    """Build and run; 0 if the tests pass and nothing was reported (a report ends the process)."""
    libraries = runtimes()
    if libraries is None:
        print("tools/asan.py needs g++ with libasan and libubsan; install the compiler's sanitizer libraries")
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    baseline = "--baseline" in arguments
    arguments = [argument for argument in arguments if argument != "--baseline"]
    build(baseline)
    copy_tree()
    without = [argument for plugin in ("cacheprovider", "faulthandler", "xdist") for argument in ("-p", f"no:{plugin}")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", *without, *(arguments or TESTS)]
    done = subprocess.run(command, cwd=TREE, env=environment(libraries))
    print(
        "no report of AddressSanitizer or UBSan" if done.returncode == 0 else f"the tests ended with {done.returncode}"
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
