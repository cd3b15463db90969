"""Dynamo breaks its graph at a module and goes on with what the module calls: nothing that takes addresses is traced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm import _torch_compat
from fastlstm.backends.cpu import backend, function


class Model(nn.Module):
    """The module in a model, so that the break is inside."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm, self.head = lstm, nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, (h, _) = self.lstm(x)
        return self.head(out), h


@pytest.mark.parametrize("T", [1, 9])
def test_a_graph_that_breaks_at_the_module(monkeypatch: pytest.MonkeyPatch, T: int) -> None:
    """Dynamo does so at what `torch.nn.LSTM` names. Results and gradients are those without it, in a training step too."""
    monkeypatch.setattr(torch.nn, "LSTM", fastlstm.LSTM)
    model, x = Model(nn.LSTM(4, 8, num_layers=2, bidirectional=True)), torch.randn(T, 3, 4)

    def step(x: Tensor) -> list[Tensor]:
        model.zero_grad()
        out, h = model(x)
        (out.square().sum() + h.sum()).backward()
        return [out.detach(), h.detach(), *(p.grad.clone() for p in model.parameters())]

    expected = step(x)
    torch._dynamo.reset()
    for again in range(2):
        torch.testing.assert_close(torch.compile(step, backend="aot_eager")(x), expected, msg=f"call {again}")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x))


def test_every_function_that_takes_an_address_is_left_alone() -> None:
    """Found in the sources, methods included: every module that takes one ends with `dynamo_skip(__name__)`."""
    package = Path(fastlstm.__file__).parent
    takers = [p for p in package.rglob("*.py") if "data_ptr()" in p.read_text() or "native.load()" in p.read_text()]
    assert len(takers) > 5
    for path in takers:
        assert path.name in _TRACED or path.read_text().endswith("\ndynamo_skip(__name__)\n"), path
    names = {code.co_name for module in (backend, function) for code in _torch_compat.code_of(module, module.__name__)}
    assert {"forward", "backward", "_direction", "_backward"} <= names


_TRACED = {"doctor.py", "cost_model.py", "_torch_compat.py"}  # they ask the native module, and hand it no tensor
