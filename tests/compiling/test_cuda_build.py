"""`pip install .` with nvcc from PyPI, and what the installed package reports on a machine without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = (
    "csrc",
    "cmake",
    "fastlstm",
    "CMakeLists.txt",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
)

REPORT_SCRIPT = """
import json, torch, fastlstm
from dataclasses import replace
from fastlstm import dispatch, doctor
from fastlstm.backends import native
lib, report = native.load().cuda, {}
report["archs"], report["missing"] = lib.archs, lib.missing()
for name, call in {
    "launch": lambda: lib.per_step_forward(0, 0, lib.ForwardArgs(), 0, 1, 0),
    "device": lambda: lib.set_device(0),
    "properties": lambda: lib.properties(0),
}.items():
    try:
        report[name] = str(call())
    except RuntimeError as error:
        report[name] = str(error)
gpu = replace(doctor.small_call(torch.device("cpu")), device=torch.device("cuda:0"))
on_cpu = doctor.small_call(torch.device("cpu"))
report["why_not"] = [dispatch.unsupported_reason("cuda", on_cpu), dispatch.unsupported_reason("cuda", gpu)]
report["doctor"] = doctor.facts()["CUDA kernels"]
lstm = fastlstm.LSTM(3, 5)
with fastlstm.backend("cpu"):
    report["cpu"] = list(lstm(torch.zeros(2, 1, 3))[0].shape)
print(json.dumps(report))
"""


def find_nvcc() -> str:
    compilers = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/nvcc"))
    if not compilers:
        pytest.skip("no nvcc from PyPI here; pip install 'fastlstm[cuda-build]'")
    return str(compilers[-1])


@pytest.mark.slow
def test_pip_install_builds_the_cuda_kernels_and_reports_a_missing_driver(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else shutil.copy(path, source / name)
    search_path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    build_env = {
        "FASTLSTM_CUDA": "on",
        "FASTLSTM_CUDA_ARCHS": "75,90",  # for sm_75 the kernels of tensor cores are empty and take no time
        "FASTLSTM_WERROR": "1",
        "CUDACXX": find_nvcc(),
        "PATH": search_path,
    }
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
        str(source),
    ]
    installed = subprocess.run(command, env={**os.environ, **build_env}, capture_output=True, text=True, cwd=tmp_path)
    assert installed.returncode == 0, installed.stdout[-4000:] + installed.stderr[-4000:]
    completed = subprocess.run(
        [sys.executable, "-c", REPORT_SCRIPT],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert completed.returncode == 0, completed.stderr
    report = json.loads(completed.stdout)
    assert report["archs"] == "75,90"
    assert report["doctor"] == "for sm_75, sm_90, and what is newer"
    assert report["cpu"] == [2, 1, 5]
    if report["missing"]:
        assert "there is no NVIDIA driver; install one for CUDA 13.0 or newer" in report["missing"]
        assert report["why_not"] == [report["missing"]] * 2
        for name in ("launch", "device", "properties"):
            assert "CUDA driver version is insufficient for CUDA runtime version" in report[name]
    (module,) = site.glob("fastlstm/_C*.so")
    libraries = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=True).stdout
    assert not any(name in libraries for name in ("libcudart", "libtorch", "libcuda.so", "libc10"))
