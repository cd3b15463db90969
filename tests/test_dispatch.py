"""Which path a call on the CPU takes without being told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import fastlstm
from fastlstm import backends, dispatch
from fastlstm.backends.base import UnfitError
from fastlstm.ops import reference
from fastlstm.ops.arguments import SAVE_ALL, OpInputs
from fastlstm.testing.cases import SHORT, make

H, B = 1024, 48  # from here on torch's own path was measured faster for dense float32 calls, with AVX-512


@pytest.fixture(autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rule takes for the machine's instruction set: AVX-512 on AMD unless a test says otherwise."""
    name, intel = getattr(request, "param", ("avx512", False))
    module = SimpleNamespace(isa=lambda: name, is_intel=lambda: intel)
    monkeypatch.setattr(dispatch, "native", SimpleNamespace(load=lambda: module))


def _backend_of_call(lstm: fastlstm.LSTM, x: torch.Tensor, **options) -> str:
    with torch.no_grad():
        lstm(x, **options)
    return fastlstm.last_plan().split(":")[0]


@pytest.mark.parametrize("grad", [False, True])
def test_large_calls_go_to_torch_from_the_measured_sizes(grad: bool) -> None:
    """Forward alone from H = 512, with gradients from 1024."""
    least = H if grad else 512
    for hidden, rows, expected in ((least, B, "torch"), (least, B - 1, "cpu"), (least - 1, B, "cpu")):
        with torch.set_grad_enabled(grad):
            fastlstm.LSTM(3, hidden)(torch.randn(2, rows, 3))
        assert fastlstm.last_plan().split(":")[0] == expected


@pytest.mark.parametrize("isa", [("avx2", False), ("baseline", False), ("avx512", True), ("amx", True)], indirect=True)
def test_only_avx512_on_amd_goes_to_torch(isa: None) -> None:
    assert _backend_of_call(fastlstm.LSTM(3, H), torch.randn(2, B, 3)) == "cpu"


def test_only_the_plain_case_goes_to_torch() -> None:
    x = torch.randn(2, B, 3)
    assert _backend_of_call(fastlstm.LSTM(3, H), x, reset=torch.zeros(2, B, dtype=torch.bool)) == "cpu"
    assert _backend_of_call(fastlstm.LSTM(3, H), x, return_cell_states=True) == "cpu"
    assert _backend_of_call(fastlstm.LSTM(3, H, dtype=torch.float64), x.double()) == "cpu"
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.full((B,), 2))
    assert _backend_of_call(fastlstm.LSTM(3, H), packed) == "cpu"


def test_a_call_that_recomputes_stays_on_the_cpu_backend() -> None:
    out, _ = fastlstm.LSTM(3, H, recompute=True)(torch.randn(2, B, 3))
    assert fastlstm.last_plan().startswith("cpu")
    out.sum().backward()


def test_a_forced_backend_goes_before_the_measured_rule() -> None:
    with fastlstm.backend("cpu"):
        assert _backend_of_call(fastlstm.LSTM(3, H), torch.randn(2, B, 3)) == "cpu"


def test_a_backend_whose_launch_was_refused_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU may refuse the last kernel that was left; without a forced backend another one runs the call."""
    refused = []

    def forward(*args):
        refused.append(args)
        raise UnfitError("backend 'cpu' cannot run this call: its launch was refused")

    cpu = backends.load("cpu")
    reason_of_cpu = cpu.unsupported_reason
    monkeypatch.setattr(cpu, "forward", forward)
    monkeypatch.setattr(cpu, "unsupported_reason", lambda spec: "refused" if refused else reason_of_cpu(spec))
    case = next(c for c in SHORT if not (c.packed or c.ids))
    inputs = OpInputs(*make(case, torch.float32), case.reverse, SAVE_ALL)
    outputs = dispatch.forward(inputs)
    assert len(refused) == 1
    torch.testing.assert_close(outputs[0], reference.forward(*inputs)[0])
    refused.clear()
    with fastlstm.backend("cpu"), pytest.raises(UnfitError, match="refused"):
        dispatch.forward(inputs)
