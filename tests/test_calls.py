"""calls.py: what autocast makes of a call."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastlstm
from fastlstm import calls, layers, products


@pytest.mark.parametrize("chosen", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda_is_float16(chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch has it for cuDNN, whichever half type autocast was given; float64 stays."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: chosen)
    with FakeTensorMode():
        x, h = torch.empty(3, 2, 5, device="cuda"), torch.empty(1, 2, 4, device="cuda")
        w, w64 = torch.empty(16, 5, device="cuda"), torch.empty(16, 4, device="cuda", dtype=torch.float64)
        x, hx, weights = calls.autocast(x, (h, h), [w, w64])
    assert [v.dtype for v in (x, *hx, *weights)] == [*[torch.float16] * 4, torch.float64]


@pytest.mark.parametrize("packed", [False, True])
def test_torch_gets_what_was_given_and_casts_for_itself(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that we had cast would be copied into one buffer at every call on a GPU."""
    lstm, seen = fastlstm.LSTM(3, 5), []
    x = torch.randn(4, 2, 3)
    given = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]]) if packed else x

    def whole(lstm, x, batch_sizes, hx, weights):
        seen.extend([x, *weights])
        return torch.zeros(6, 5) if packed else torch.zeros(4, 2, 5), torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)

    monkeypatch.setattr(layers, "whole", whole)
    with torch.autocast("cpu", dtype=torch.bfloat16), fastlstm.backend("torch"):
        lstm(given)
    x, *weights = seen
    assert x is (given.data if packed else given)
    assert all(a is b for a, b in zip(weights, lstm.parameters(), strict=True))


@pytest.mark.parametrize("kind", [{}, {"proj_size": 2}, {"recompute": True}])
def test_backward_inside_autocast_of_a_call_outside_it(kind: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients have the type and the bits that they have without autocast; products are torch's, as on a GPU."""
    monkeypatch.setattr(products, "runs", lambda a: False)
    lstm, x = fastlstm.LSTM(3, 5, 2, **kind), torch.randn(4, 2, 3, requires_grad=True)
    wanted, found = [x, *lstm.parameters()], []
    for on in (False, True):
        with fastlstm.backend("reference"):
            out = lstm(x)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            found.append(torch.autograd.grad(out, wanted, torch.ones_like(out)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
