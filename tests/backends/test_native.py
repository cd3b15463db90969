"""The native module as it is loaded: what the package calls is there, and an older build is named, not stumbled over."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastlstm
from fastlstm.backends import native

PACKAGE = Path(fastlstm.__file__).parent


def _called() -> set[str]:
    """Names that the package takes from `native.load()`, from a variable set to it, or from `_C` in native.py."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        loads = {
            ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n) == "native.load()"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.value) in loads and len(node.targets) == 1:
                loads = loads | {ast.unparse(node.targets[0])}
        if path == PACKAGE / "backends" / "native.py":
            loads = {"_C", "load()", "module"}
        names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) in loads}
    return names - {"cuda", "no_cuda", "no_cpu", "__file__"}  # what may be left out, or why; the backends ask which


def test_every_name_that_is_called_is_looked_for_when_it_loads() -> None:
    assert _called() == {*native._NAMES, *native._CPU_NAMES}


def test_an_older_module_is_named_once_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = SimpleNamespace(
        __file__="old/_C.so",
        interface=native.INTERFACE,
        **dict.fromkeys({*native._NAMES, *native._CPU_NAMES} - {"gemm", "pack"}),
    )
    monkeypatch.setattr(fastlstm, "_C", old, raising=False)
    monkeypatch.setitem(sys.modules, "fastlstm._C", old)
    with caplog.at_level(logging.WARNING, logger="fastlstm"):
        module, reason = native._attempt.__wrapped__()
    assert module is None
    assert reason == caplog.messages[0]
    assert "old/_C.so is older than the package (it has no gemm, pack)" in reason
    assert "pip install -e ." in reason


def test_a_module_of_another_interface_is_named_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions have the right names and take other keywords."""
    old = SimpleNamespace(__file__="old/_C.so", **dict.fromkeys((*native._NAMES, *native._CPU_NAMES)))
    monkeypatch.setattr(fastlstm, "_C", old, raising=False)
    monkeypatch.setitem(sys.modules, "fastlstm._C", old)
    module, reason = native._attempt.__wrapped__()
    assert module is None
    assert f"it has interface 1, expected {native.INTERFACE}" in reason


def test_the_interface_number_is_of_these_keywords() -> None:
    """Where this fails, keywords have changed: raise INTERFACE and `interface`, and put the new checksum here."""
    bindings = PACKAGE.parent / "csrc" / "bindings"
    if not bindings.exists():
        pytest.skip("the sources of the native module are not beside the package")
    sources = "".join(path.read_text() for path in sorted([*bindings.glob("*.cpp"), *bindings.glob("*.h")]))
    keywords = sorted(set(re.findall(r'(?:\ba\.\w+(?:<[^>]*>)?\((?:[^"()]*, )?|keep\(|arg\()"(\w+)"', sources)))
    assert len(keywords) > 60
    assert (native.INTERFACE, zlib.crc32(" ".join(keywords).encode())) == (5, 2936618842)
    assert native.load().interface == native.INTERFACE


def test_an_instruction_set_that_is_not_there_is_said_once() -> None:
    code = "import torch, fastlstm; [fastlstm.LSTM(3, 5)(torch.randn(4, 2, 3)) for _ in range(2)]"
    environment = os.environ | {"FASTLSTM_ISA": "mmx"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert done.stderr.count("FASTLSTM_ISA is 'mmx', this machine runs baseline") == 1


def test_modules_run_beside_an_older_native_module() -> None:
    code = (
        "import sys, types; old = types.ModuleType('fastlstm._C'); old.__file__ = 'old'; sys.modules['fastlstm._C'] = old\n"
        "import torch, fastlstm\n"
        "lstm = fastlstm.LSTM(3, 5); lstm(torch.randn(4, 2, 3))[0].sum().backward()\n"
        "print(fastlstm.last_plan())\n"
        "with fastlstm.backend('cpu'): lstm(torch.randn(4, 2, 3))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("torch: ")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fastlstm.backends.base.BackendError: backend 'cpu' was asked for and cannot run this call")
    assert "older than the package" in last
    assert done.stderr.count("is not used; build it again") == 2  # the warning and the error


WITHOUT_CPU = """
import sys, types
module = types.ModuleType("fastlstm._C")
module.__file__, module.no_cpu, module.no_cuda = "new", "FASTLSTM_CPU=off", "there was no nvcc"
module.plan, module.interface = types.SimpleNamespace(), INTERFACE
sys.modules["fastlstm._C"] = module
import torch, fastlstm
from fastlstm import dispatch, doctor
from fastlstm.backends import native
from fastlstm.backends.cuda import backend as cuda
"""


def _without_cpu(code: str, **env: str) -> subprocess.CompletedProcess:
    """Run code with a module as FASTLSTM_CPU=off builds it."""
    setup = WITHOUT_CPU.replace("INTERFACE", str(native.INTERFACE))
    command = [sys.executable, "-W", "ignore", "-c", setup + code]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=300)


def test_a_build_without_cpu_kernels_is_taken_as_it_is() -> None:
    """The planner and the CUDA kernels are used; an instruction set has no meaning then."""
    done = _without_cpu(
        "print(native.load() is module, native.module_unavailable()); print(native.unavailable())\n"
        "print(cuda.not_built()); print(doctor.instruction_set())",
        FASTLSTM_ISA="mmx",
    )
    assert done.stderr == ""
    loaded, reason, cuda, doctor = done.stdout.splitlines()
    assert loaded == "True None"
    assert reason.startswith("this build of fastlstm has no CPU kernels (FASTLSTM_CPU=off); ")
    assert cuda.startswith("fastlstm has no CUDA kernels, since there was no nvcc")
    assert doctor == f"none: {reason}"


EVERY_CALL = """
from torch.nn.utils.rnn import pack_sequence
def check(name, value, expected):
    assert torch.allclose(value, expected, atol=1e-5), name
    print(name, fastlstm.last_plan().split(":")[0])
torch.manual_seed(0)
torch_lstm = torch.nn.LSTM(3, 5, 2); lstm = fastlstm.LSTM(3, 5, 2); lstm.load_state_dict(torch_lstm.state_dict())
x = torch.randn(7, 2, 3)
with torch.no_grad():
    check("one step", lstm(x[:1])[0], torch_lstm(x[:1])[0])
check("dense", lstm(x)[0], torch_lstm(x)[0])
packed = pack_sequence([x[:, 0], x[:4, 1]])
check("packed", lstm(packed)[0].data, torch_lstm(packed)[0].data)
large = fastlstm.LSTM(3, 1024); large(torch.randn(2, 48, 3))[0].sum().backward()
print("large", fastlstm.last_plan().split(":")[0])
check("double", lstm.double()(x.double())[0], torch_lstm.double()(x.double())[0])
lstm.float(); torch_lstm.float()
reset = torch.zeros(7, 2, dtype=torch.bool)
check("reset", lstm(x, reset=reset)[0], torch_lstm(x)[0])
stream = lstm.stream(2)
print("stream", torch.allclose(torch.stack([stream.step(v) for v in x]), torch_lstm(x)[0], atol=1e-5))
tokens = fastlstm.TokenLSTM(11, 4, 5); ids = torch.randint(11, (7, 2))
tokens(ids)[0].sum().backward()
print("tokens", fastlstm.last_plan().split(":")[0], tokens.embedding.weight.grad.abs().sum() > 0)
print("decode", fastlstm.decode(tokens, torch.randn(11, 5), None, [1], length=4).ids.shape)
print("compiled", dispatch.compiled_prefers_torch(torch.device("cpu"), torch.float32, 5, 0))
with fastlstm.backend("cpu"):
    lstm(x)
"""


def test_without_cpu_kernels_every_call_runs_on_another_backend() -> None:
    done = _without_cpu(EVERY_CALL)
    last = done.stderr.strip().splitlines()[-1]
    assert "backend 'cpu' was asked for and cannot run this call: this build of fastlstm has no CPU kernels" in last
    assert len(done.stderr.strip().split("Traceback")) == 2
    assert done.stdout.splitlines() == [
        *("one step torch", "dense torch", "packed torch", "large torch", "double torch", "reset reference"),
        *("stream True", "tokens torch tensor(True)", "decode torch.Size([4, 1])", "compiled True"),
    ]
