"""`pip install .` with nvcc from PyPI, and what the result says on a machine without a GPU."""

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

ASK = """
import json, torch, fastlstm
from dataclasses import replace
from fastlstm import dispatch, doctor
from fastlstm.backends import native
lib, found = native.load().cuda, {}
found["archs"], found["missing"] = lib.archs, lib.missing()
for name, call in {
    "launch": lambda: lib.per_step_forward(0, 0, lib.ForwardArgs(), 0, 1, 0),
    "device": lambda: lib.set_device(0),
    "properties": lambda: lib.properties(0),
}.items():
    try:
        found[name] = str(call())
    except RuntimeError as error:
        found[name] = str(error)
gpu = replace(doctor.small_call(torch.device("cpu")), device=torch.device("cuda:0"))
on_cpu = doctor.small_call(torch.device("cpu"))
found["why_not"] = [dispatch.unsupported_reason("cuda", on_cpu), dispatch.unsupported_reason("cuda", gpu)]
found["doctor"] = doctor.facts()["CUDA kernels"]
lstm = fastlstm.LSTM(3, 5)
with fastlstm.backend("cpu"):
    found["cpu"] = list(lstm(torch.zeros(2, 1, 3))[0].shape)
print(json.dumps(found))
"""


def nvcc() -> str:
    found = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/nvcc"))
    if not found:
        pytest.skip("no nvcc from PyPI here; pip install 'fastlstm[cuda-build]'")
    return str(found[-1])


@pytest.mark.slow
def test_pip_install_builds_the_kernels_and_they_explain_a_missing_driver(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else shutil.copy(path, source / name)
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    build = {
        "FASTLSTM_CUDA": "on",
        "FASTLSTM_CUDA_ARCHS": "80,90",
        "FASTLSTM_WERROR": "1",
        "CUDACXX": nvcc(),
        "PATH": tools,
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
    done = subprocess.run(command, env={**os.environ, **build}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    assert found["archs"] == "80,90"
    assert found["doctor"] == "for sm_80, sm_90, and what is newer"
    assert found["cpu"] == [2, 1, 5]
    if found["missing"]:
        assert "there is no NVIDIA driver; install one for CUDA 13.0 or newer" in found["missing"]
        assert found["why_not"] == [found["missing"]] * 2
        for name in ("launch", "device", "properties"):
            assert "CUDA driver version is insufficient for CUDA runtime version" in found[name]
    (module,) = site.glob("fastlstm/_C*.so")
    needs = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=True).stdout
    assert not any(name in needs for name in ("libcudart", "libtorch", "libcuda.so", "libc10"))
