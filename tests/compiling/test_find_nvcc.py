"""What CMake decides about the CUDA kernels, by running cmake/FindNvcc.cmake as a script with made-up tools."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMES = ("FASTLSTM_NVCC", "FASTLSTM_NVCC_LIB", "FASTLSTM_CUDA_REASON", "FASTLSTM_CUDA_BUILT")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

NVCC = """#!/bin/sh
case "$*" in
  *--dryrun*) echo "#$ TOP={top}" >&2 ;;
  *--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_90\\n' ;;
  *) {compiles} ;;
esac
"""


def make_executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_toolkit(folder: Path, compiles: str = "exit 0", library: bool = True) -> Path:
    """A made-up nvcc, with its runtime library where PyPI's has it."""
    nvcc = make_executable(folder / "bin" / "nvcc", NVCC.format(top=folder, compiles=compiles))
    if library:
        (folder / "lib").mkdir()
        (folder / "lib" / "libcudart_static.a").touch()
    return nvcc


def cmake(
    tmp_path: Path, *options: str, python: str = sys.executable, after: str = "", **env: str
) -> tuple[int, dict[str, str], str]:
    """Run the script and `after`; returns its exit code, the variables it set, and its output."""
    script = tmp_path / "print_variables.cmake"
    messages = "\n".join(f'message("{name}=${{{name}}}")' for name in NAMES)
    script.write_text(f"include({ROOT}/cmake/FindNvcc.cmake)\n{messages}\n{after}\n")
    definitions = [f"-D{option}" for option in options]
    definitions += [f"-DPython_EXECUTABLE={python}", f"-DCMAKE_CXX_COMPILER={shutil.which('g++')}"]
    command = [
        shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
        *definitions,
        "-P",
        str(script),
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")}
    completed = subprocess.run(command, cwd=tmp_path, env={**environment, **env}, capture_output=True, text=True)
    output = " ".join((completed.stdout + completed.stderr).split())
    return completed.returncode, dict(re.findall(r"^(\w+)=(.*)$", completed.stderr, re.M)), output


NO_NVCC_ON_PATH = "FASTLSTM_NVCC_ON_PATH="  # as if the system had none


def python_without_nvcc(tmp_path: Path) -> str:
    """A Python whose site-packages hold no nvcc."""
    return str(make_executable(tmp_path / "python", "#!/bin/sh\nprintf ''\n"))


def test_cudacxx_names_the_nvcc(tmp_path):
    nvcc = make_toolkit(tmp_path / "cuda")
    code, variables, _ = cmake(tmp_path, CUDACXX=str(nvcc))
    assert code == 0
    assert variables["FASTLSTM_NVCC"] == str(nvcc)
    assert variables["FASTLSTM_NVCC_LIB"] == str(tmp_path / "cuda" / "lib")
    assert variables["FASTLSTM_CUDA_BUILT"] == "75;80;90"  # the default architectures that this nvcc knows


def test_nvcc_is_found_in_site_packages(tmp_path):
    nvcc = make_toolkit(tmp_path / "nvidia" / "cu13")
    code, variables, _ = cmake(tmp_path, NO_NVCC_ON_PATH, PYTHONPATH=str(tmp_path), python=sys.executable)
    if variables["FASTLSTM_NVCC"] != str(nvcc):  # this environment has one of its own, which goes by its version
        assert "site-packages" in variables["FASTLSTM_NVCC"]
    assert code == 0


def test_chosen_architectures_are_separated_by_commas_spaces_or_semicolons(tmp_path):
    nvcc = make_toolkit(tmp_path / "cuda")
    for archs in ("90,80", "80 90", "80;90"):
        assert cmake(tmp_path, f"FASTLSTM_CUDA_ARCHS={archs}", CUDACXX=str(nvcc))[1]["FASTLSTM_CUDA_BUILT"] == "80;90"


def test_an_architecture_with_a_letter_is_kept_beside_the_plain_one(tmp_path):
    nvcc = make_toolkit(tmp_path / "cuda")
    for archs, built in (("90a", "90a"), ("90a,80", "80;90a"), ("90a 90", "90;90a")):
        code, variables, _ = cmake(tmp_path, f"FASTLSTM_CUDA_ARCHS={archs}", CUDACXX=str(nvcc))
        assert (code, variables["FASTLSTM_CUDA_BUILT"]) == (0, built)


@pytest.mark.parametrize(
    ("archs", "targets"),
    [
        ("80;90", "80-real;90"),  # without -real: machine code and PTX
        ("90", "90"),
        ("90a", "90a-real"),
        ("80;90a", "80;90a-real"),
        ("90;90a", "90;90a-real"),
        ("75;90;90a;100a", "75-real;90;90a-real;100a-real"),
    ],
)
def test_ptx_is_built_for_the_newest_architecture_without_a_letter(tmp_path, archs, targets):
    after = f'fastlstm_targets("{archs}" targets)\nmessage("targets=${{targets}}")'
    assert cmake(tmp_path, "FASTLSTM_CUDA=off", after=after)[1]["targets"] == targets


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize(
    ("toolkit_options", "message"),
    [
        (None, "no nvcc was found when it was built"),
        ({"compiles": "echo 'error: unsupported GNU version'; exit 1"}, "error: unsupported GNU version"),
        ({"library": False}, "came without libcudart_static.a"),
    ],
)
def test_without_a_working_nvcc_auto_builds_for_the_cpu_and_on_is_an_error(tmp_path, mode, toolkit_options, message):
    """auto: the CPU alone, and why; on: an error that says what to install."""
    env = {} if toolkit_options is None else {"CUDACXX": str(make_toolkit(tmp_path / "cuda", **toolkit_options))}
    code, variables, output = cmake(
        tmp_path, NO_NVCC_ON_PATH, f"FASTLSTM_CUDA={mode}", python=python_without_nvcc(tmp_path), **env
    )
    if mode == "auto":
        assert (code, variables["FASTLSTM_NVCC"]) == (0, "")
        assert message in variables["FASTLSTM_CUDA_REASON"]
    else:
        assert code != 0
        assert message in output
        assert "pip install 'nvidia-cuda-nvcc==13.0.*'" in output


def test_with_off_nvcc_is_not_looked_for(tmp_path):
    nvcc = make_toolkit(tmp_path / "cuda")
    code, variables, _ = cmake(tmp_path, "FASTLSTM_CUDA=off", CUDACXX=str(nvcc))
    assert (code, variables["FASTLSTM_NVCC"], variables["FASTLSTM_CUDA_REASON"]) == (
        0,
        "",
        "it was built with FASTLSTM_CUDA=off",
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("FASTLSTM_CUDA=yes", "FASTLSTM_CUDA is 'yes', expected auto, on or off"),
        ("FASTLSTM_CUDA_ARCHS=sm_80", "FASTLSTM_CUDA_ARCHS has 'sm_80', expected numbers from 75 on, such as 80,90"),
        ("FASTLSTM_CUDA_ARCHS=70", "FASTLSTM_CUDA_ARCHS has '70', expected numbers from 75 on, such as 80,90"),
        (
            "FASTLSTM_CUDA_ARCHS=80a",
            "FASTLSTM_CUDA_ARCHS has '80a', expected numbers from 75 on, such as 80,90; from 90 on",
        ),
        ("FASTLSTM_CUDA_ARCHS=90b", "FASTLSTM_CUDA_ARCHS has '90b', expected"),
        ("FASTLSTM_CUDA_ARCHS=120", "FASTLSTM_CUDA_ARCHS has 120, which"),
        ("FASTLSTM_CUDA_ARCHS=120a", "FASTLSTM_CUDA_ARCHS has 120a, which"),
    ],
)
def test_invalid_settings_are_an_error_with_what_is_expected(tmp_path, option, message):
    code, _, output = cmake(tmp_path, option, CUDACXX=str(make_toolkit(tmp_path / "cuda")))
    assert code != 0
    assert message in output


def test_setup_fetches_the_packages_of_the_cuda_build_extra():
    """setup.py's list of packages is the extra's."""
    tomllib = pytest.importorskip("tomllib")
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cuda-build"]
    source = (ROOT / "setup.py").read_text()
    code = source[source.index("CUDA = ") : source.index("class BuildNative")]
    for mode, expected in (("on", set(extra)), ("auto", set())):
        namespace: dict = {}
        exec(f"import os, shutil\n{code}", namespace)
        namespace.update(CUDA=mode, shutil=type("S", (), {"which": lambda name: None}))
        namespace["os"] = type("O", (), {"environ": {}, "path": type("P", (), {"exists": lambda path: False})})
        assert set(namespace["nvcc_to_fetch"]()) == expected
