"""The native module as it is loaded: what the package calls is there, and an older build is named, not stumbled over."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastlstm
from fastlstm import native

PACKAGE = Path(fastlstm.__file__).parent


def _called() -> set[str]:
    """Names that the package takes from `native.load()`, from a variable set to it, or from `_C` in native.py."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        loads = {
            ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n) == "native.load()"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.value) in loads and len(node.targets) == 1:
                loads = loads | {ast.unparse(node.targets[0])}
        if path == PACKAGE / "native.py":
            loads = {"_C"}
        found |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) in loads}
    return found - {"cuda", "no_cuda", "__file__"}  # one of the two is there, and the backend asks which


def test_every_name_that_is_called_is_looked_for_when_it_loads() -> None:
    assert _called() == set(native._NAMES)


def test_an_older_module_is_named_once_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = SimpleNamespace(__file__="old/_C.so", **dict.fromkeys(set(native._NAMES) - {"gemm", "pack"}))
    monkeypatch.setattr(fastlstm, "_C", old, raising=False)
    monkeypatch.setitem(sys.modules, "fastlstm._C", old)
    with caplog.at_level(logging.WARNING, logger="fastlstm"):
        module, reason = native._attempt.__wrapped__()
    assert module is None
    assert reason == caplog.messages[0]
    assert "old/_C.so is older than the package (it has no gemm, pack)" in reason
    assert "pip install -e ." in reason


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
    assert last.startswith(
        "fastlstm.backends.common.BackendError: backend 'cpu' was asked for and cannot run this call"
    )
    assert "older than the package" in last
    assert done.stderr.count("is not used; build it again") == 2  # the warning and the error
