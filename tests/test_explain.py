"""`fastlstm.explain`: what would run, and why the others would not; nothing runs for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm
from fastlstm import backends
from fastlstm.backends import native

needs_native = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


@needs_native
@pytest.mark.parametrize(
    "module", [fastlstm.LSTM(3, 5, 2, batch_first=True), fastlstm.TokenLSTM(7, 3, 5)], ids=["x", "ids"]
)
def test_explain_runs_nothing_and_names_the_plan_of_the_call(module: nn.Module) -> None:
    x = torch.randint(7, (6, 2)) if isinstance(module, fastlstm.TokenLSTM) else torch.randn(6, 2, 3)
    fastlstm.dispatch.record_plan("nothing")
    text = fastlstm.explain(module, x)
    assert fastlstm.last_plan() == "nothing"
    module(x)
    first = text.splitlines()[0]
    assert first == f"runs on cpu (automatic choice): {fastlstm.last_plan().removeprefix('cpu: ')}"
    assert "gradients are on" in text


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"bidirectional": True}, {"proj_size": 2}, {"num_layers": 2}]
)
def test_the_plan_it_names_runs_for_every_option_and_size(options: dict, grad: bool) -> None:
    lstm = fastlstm.LSTM(3, 5, **options)
    for shape in ((1, 1, 3), (2, 2, 3), (4, 1, 3), (5, 1, 3), (7, 3, 3), (4, 3)):
        x = torch.randn(shape)
        with torch.set_grad_enabled(grad):
            first = fastlstm.explain(lstm, x).splitlines()[0]
            lstm(x)
        assert first == f"runs on cpu (automatic choice): {fastlstm.last_plan().removeprefix('cpu: ')}", shape


@pytest.mark.parametrize("options", [{"return_gates": True}, {"return_cell_states": True}])
def test_extra_results_and_resets_take_the_route_of_the_op(options: dict) -> None:
    """Asked for by the module or by the call."""
    x = torch.randn(2, 2, 3)
    assert "route: op\n" in fastlstm.explain(fastlstm.LSTM(3, 5, **options), x)
    assert "route: op\n" in fastlstm.explain(fastlstm.LSTM(3, 5), x, **options)
    assert "route: op\n" in fastlstm.explain(fastlstm.LSTM(3, 5), x, reset=torch.zeros(2, 2, dtype=torch.bool))
    assert "route: fused CPU\n" in fastlstm.explain(
        fastlstm.LSTM(3, 5), x, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    )


def test_every_other_backend_gives_its_reason() -> None:
    text = fastlstm.explain(fastlstm.LSTM(3, 5), pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]))
    for name in backends.names():
        if backends.load(name) is not None:
            assert f"  {name}: " in text
    assert "  cuda: no, " in text or backends.load("cuda") is None
    with torch.no_grad():
        assert "gradients are on" not in fastlstm.explain(fastlstm.LSTM(3, 5), torch.randn(2, 3))


def test_a_forced_backend_that_cannot_raises_its_reason() -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(4, 2, 3)
    with fastlstm.backend("reference"):
        assert fastlstm.explain(lstm, x).startswith("runs on reference ('reference' is forced)")
    with fastlstm.backend("torch"):
        assert "nn.LSTM's own kernels" in fastlstm.explain(lstm, x)
    with (
        fastlstm.backend("triton"),
        pytest.raises(fastlstm.BackendError, match="'triton' was asked for and cannot run"),
    ):
        fastlstm.explain(lstm.double(), x.double())  # float64, which it does not take, GPU or not
    with pytest.raises(TypeError, match=r"module is a LSTM, expected fastlstm\.LSTM or fastlstm\.TokenLSTM"):
        fastlstm.explain(nn.LSTM(3, 5), x)
