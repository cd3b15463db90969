"""The folder for a GPU machine: how it is built, what is in it, and that what is built imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import cuda_compile, gpu_folder

HERE = "{}.{}".format(*sys.version_info)

# In a folder: which files are imported, why the GPU cannot be used, and what the planner says.
ASK = """
import json, torch, fastlstm
from fastlstm.backends import cost_model, native
from fastlstm.backends.cuda import backend as cuda
from fastlstm.backends.cuda import planner
module = native.load()
chosen = planner.choices(module.plan, cost_model.known("NVIDIA H100", 90, 132, 232448), 3, H=512, B=16, projected=False)
lstm = fastlstm.LSTM(3, 5)
lstm(torch.zeros(2, 1, 3))[0].sum().backward()
print(json.dumps({
    "files": [fastlstm.__file__, module.__file__], "names": sorted(n for n in dir(module) if n[0] != "_"),
    "archs": module.cuda.archs, "not_built": cuda.not_built(), "device": cuda._wrong_device(torch.device("cuda:0")),
    "kernels": [c.kernel for c in chosen], "us": [c.us for c in chosen], "plan": fastlstm.last_plan(),
    "why_not": native.unavailable(),
}))
"""


def interpreter(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


def test_pythons_are_found_on_path_and_in_pyenv(tmp_path, monkeypatch):
    shim = interpreter(tmp_path / "bin" / "python3.98", "exit 127")  # a version that pyenv has and that is not chosen
    real = interpreter(
        tmp_path / "pyenv/versions/3.98.1/bin/python3.98", """echo '["3.98", ".cpython-398.so", true]'"""
    )
    interpreter(tmp_path / "pyenv/versions/3.97.0/bin/python3.97", """echo '["3.97", ".cpython-397.so", false]'""")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert gpu_folder.candidates("3.98") == [str(shim), str(real)]
    assert gpu_folder.find_python("3.98") == gpu_folder.Python(str(real), "3.98", ".cpython-398.so")
    assert "3.97.0/bin/python3.97 has no headers" in gpu_folder.find_python("3.97")
    assert gpu_folder.find_python("3.96") == "not found"
    assert gpu_folder.candidates(HERE)[0] == sys.executable


def test_all_builds_use_one_nvcc(tmp_path, monkeypatch):
    """Also those for a Python whose site-packages have none."""
    nvcc = interpreter(tmp_path / "bin" / "nvcc", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.delenv("CUDACXX", raising=False)
    assert gpu_folder.find_nvcc() == str(nvcc)
    asked = "import os, pathlib; pathlib.Path('nvcc').write_text(os.environ['CUDACXX'])"
    gpu_folder.run([[sys.executable, "-c", asked]], tmp_path)
    assert (tmp_path / "nvcc").read_text() == str(nvcc)
    monkeypatch.setenv("CUDACXX", "/chosen/nvcc")
    assert gpu_folder.find_nvcc() == "/chosen/nvcc"


def test_kernels_are_compiled_once_and_bindings_for_each_python(tmp_path):
    configure, build = gpu_folder.kernels(tmp_path, "90a", 2)
    for option in ("FASTLSTM_CPU=off", "FASTLSTM_CUDA=on", "FASTLSTM_CUDA_ARCHS=90a", "FASTLSTM_TIMEOUT_MS=200"):
        assert f"-D{option}" in configure
    assert build[2:] == [str(tmp_path / "kernels"), "--parallel", "2", "--target", "kernels_cuda", "ubench"]
    python = gpu_folder.Python("/there/python3.12", "3.12", ".cpython-312.so")
    configure, build = gpu_folder.module(tmp_path, "90a", 2, python)
    assert "-DPython_EXECUTABLE=/there/python3.12" in configure
    assert "-DFASTLSTM_CPU=off" in configure
    (objects,) = (
        option.split("=")[1].split(";") for option in configure if option.startswith("-DFASTLSTM_CUDA_OBJECTS")
    )
    sources = sorted(path.name for path in (gpu_folder.ROOT / "csrc" / "cuda").glob("*.cu"))
    assert [Path(path).name for path in objects] == [f"{name}.o" for name in sources]
    assert all(path.startswith(str(tmp_path / "kernels")) for path in objects)
    assert build[-2:] == ["--target", "_C"]


def pretend(monkeypatch, out: Path, most: int = gpu_folder.MOST_BYTES, versions: tuple[str, ...] = (HERE,)) -> None:
    """Prepare the folder with empty files in place of what compilers make."""
    monkeypatch.setattr(gpu_folder, "run", lambda commands, folder=None: None)
    monkeypatch.setattr(gpu_folder, "_keep", lambda source, out: out.write_bytes(b"built"))
    monkeypatch.setattr(gpu_folder, "MOST_BYTES", most)
    gpu_folder.prepare(out, list(versions), "90a", 1)


def test_the_folder_holds_what_is_needed_and_no_more(tmp_path, monkeypatch, capsys):
    out = tmp_path / "day"
    (out / "fastlstm").mkdir(parents=True)
    (out / "fastlstm" / "old.py").touch()
    pretend(monkeypatch, out, versions=(HERE, "3.96"))
    assert {path.name for path in out.iterdir()} == {*gpu_folder.COPIED, "ubench", "COMMIT", "HOW"}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {
        "fastlstm/backends/native.py",
        "tools/gpu_folder.py",
        "tests/hostsim/sim/engine.cpp",
        "benchmarks/characters.py",
    } <= files
    assert "fastlstm/old.py" not in files
    assert [name for name in files if name.endswith(".so")] == [f"fastlstm/_C{gpu_folder.find_python(HERE).suffix}"]
    assert not [name for name in files if "/test_" in name or name.endswith(".pyc")]
    assert len((out / "HOW").read_text().splitlines()) == 5
    assert f"Python {HERE} with torch" in (out / "HOW").read_text()
    assert len((out / "COMMIT").read_text().strip().removesuffix("+changes")) == 40
    assert gpu_folder.size(out) < gpu_folder.MOST_BYTES / 2  # without what is compiled
    assert "Python 3.96: left out, not found" in capsys.readouterr().out


def test_a_folder_that_is_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="build for fewer GPUs or Pythons"):
        pretend(monkeypatch, tmp_path / "day", most=1_000_000)


def test_no_python_is_an_error_before_anything_is_built(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"no Python with headers was found; install one of 3\.96"):
        pretend(monkeypatch, tmp_path / "day", versions=("3.96",))
    assert not (tmp_path / "day").exists()


def test_a_failing_command_is_shown_with_its_output():
    with pytest.raises(SystemExit, match=r"-c import sys(?s:.*)no compiler"):
        gpu_folder.run([[sys.executable, "-c", "import sys; sys.exit('no compiler')"]])


@pytest.mark.slow
def test_a_built_folder_imports_and_plans_and_says_that_there_is_no_gpu(tmp_path):
    if cuda_compile.find_nvcc() is None:
        pytest.skip("no nvcc; pip install 'fastlstm[cuda-build]'")
    out = tmp_path / "day"
    gpu_folder.prepare(out, [HERE], "90a", 2)
    assert gpu_folder.size(out) < gpu_folder.MOST_BYTES
    done = subprocess.run([sys.executable, "-c", ASK], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert all(path.startswith(str(out)) for path in reply["files"])
    assert reply["names"] == ["cuda", "interface", "no_cpu", "plan"]
    assert (reply["archs"], reply["not_built"]) == ("90a", None)
    assert reply["device"] is None or "there is no NVIDIA driver" in reply["device"]
    assert len(reply["kernels"]) == 2
    assert all(us > 0 for us in reply["us"])
    assert reply["plan"].startswith("torch: ")
    assert "no CPU kernels (FASTLSTM_CPU=off)" in reply["why_not"]
    lines = subprocess.run([str(out / "ubench")], capture_output=True, text=True).stdout.splitlines()
    assert "gpu" in json.loads(lines[0]) or "driver" in json.loads(lines[0])["error"]


def test_only_a_folder_of_its_own_is_replaced(tmp_path, monkeypatch):
    """Neither someone's files nor what was measured."""
    monkeypatch.setattr(gpu_folder, "COPIED", ("benchmarks",))
    out, other, results = tmp_path / "gpu-day", tmp_path / "home", tmp_path / "measured"
    gpu_folder.copy(out)
    (out / "HOW").write_text("")
    gpu_folder.copy(out)
    assert not (out / "HOW").exists()
    assert (out / "benchmarks" / "gpu_day" / "__main__.py").exists()
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(SystemExit, match=r"home holds letter.txt, which is not of this tool; give another --out"):
        gpu_folder.copy(other)
    (results / "benchmarks" / "out").mkdir(parents=True)
    (results / "benchmarks" / "out" / "raw.jsonl").write_text("{}")
    with pytest.raises(SystemExit, match=r"holds results \(benchmarks/out/raw\.jsonl\); move them away"):
        gpu_folder.copy(results)
    assert (other / "letter.txt").exists()
    assert (results / "benchmarks" / "out" / "raw.jsonl").exists()
