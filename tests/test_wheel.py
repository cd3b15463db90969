"""What a wheel of this package brings."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Without the finder of an editable installation, which would lend the unpacked package the native module of the tree
PROGRAM = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
from fastlstm import cli
assert cli.__file__.startswith(sys.argv[1]), cli.__file__
cli.main(["sample", "names", "--num", "5", "--seed", "1"])
"""


@pytest.mark.slow
def test_a_wheel_brings_the_names_model_and_no_simulator(tmp_path):
    """Built without the native module, unpacked elsewhere: the model is there and writes names."""
    pytest.importorskip("scikit_build_core", reason="the build needs scikit-build-core")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, ROOT]
    done = subprocess.run(command, env=os.environ | {"FASTLSTM_NATIVE": "off"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        files = archive.namelist()
    assert {file.split("/")[0].split("-")[0] for file in files} == {"fastlstm"}  # and its metadata
    assert not [file for file in files if "hostsim" in file or file.endswith((".cpp", ".cu", ".h"))]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 5
