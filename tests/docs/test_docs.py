"""docs/swapping.md: every line names the tests that show it, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.backends import native

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "swapping.md"


def _tests_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def _lines() -> list[str]:
    """The page's list items, whole."""
    _, *items = re.split(r"^- ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.split(r"\n\s*\n|^#", item, maxsplit=1, flags=re.MULTILINE)[0] for item in items]


def test_every_line_of_the_page_names_tests_that_exist() -> None:
    assert len(_lines()) > 30
    for line in _lines():
        named = re.findall(r"`((?:\w+/)*test_\w+\.py)::(\w+)`", line)
        assert named, f"no test behind: {line}"
        for file, test in named:
            assert test in _tests_of(file), f"{file} has no {test}"


def test_it_is_an_rnn_base_and_no_nn_lstm() -> None:
    lstm = fastlstm.replace(nn.LSTM(3, 5))
    assert isinstance(lstm, nn.RNNBase)
    assert not isinstance(lstm, nn.LSTM)


def test_repeated_runs_give_the_same_bits() -> None:
    lstm, x = fastlstm.LSTM(33, 65, 2, bidirectional=True), torch.randn(20, 7, 33)

    def run() -> list[torch.Tensor]:
        lstm.zero_grad()
        out, state = lstm(x)
        out.square().sum().backward()
        return [out.detach(), *state, *(p.grad for p in lstm.parameters())]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize("way", ["block", "variable"])
def test_backend_torch_runs_torch_s_own_kernels(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_lstm = nn.LSTM(3, 5, 2)
    lstm, x = fastlstm.LSTM.from_torch(torch_lstm), torch.randn(6, 2, 3)
    if way == "variable":
        monkeypatch.setenv("FASTLSTM_BACKEND", "torch")
        actual = lstm(x)
    else:
        with fastlstm.backend("torch"):
            actual = lstm(x)
    assert fastlstm.last_plan().startswith("torch")
    torch.testing.assert_close(actual, torch_lstm(x), rtol=0, atol=0)
