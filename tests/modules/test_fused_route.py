"""The fused CPU route: what it takes, and that it gives what the op gives."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastlstm
from fastlstm.backends import native
from fastlstm.backends.cpu import function

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
OPTIONS = [
    {},
    {"bias": False, "num_layers": 2},
    {"num_layers": 3, "bidirectional": True},
    {"proj_size": 2, "num_layers": 2},
    {"proj_size": 2, "bidirectional": True, "batch_first": True},
]


def _lengths(layout: str) -> list[int]:
    return {"dense": [7, 7, 7], "ragged": [1, 7, 3], "one": [1]}[layout]


def _case(module: torch.nn.Module, layout: str, dtype: torch.dtype, token: bool):
    items = [torch.randint(5, (n,)) if token else torch.randn(n, 5, dtype=dtype) for n in _lengths(layout)]
    if layout == "ragged":
        return pack_sequence(items, enforce_sorted=False)
    x = torch.stack(items)
    lstm = module.lstm if token else module
    x = x if lstm.batch_first else x.transpose(0, 1)
    return x if token else x.requires_grad_()


def _outputs_and_grads(module: torch.nn.Module, x, hx, on_op: bool) -> list[torch.Tensor]:
    """Results and all gradients; on_op: under a mode that could observe the fused route, else that must be taken."""
    with torch.device("cpu") if on_op else nullcontext():
        assert f"route: {'op' if on_op else 'fused CPU'}\n" in fastlstm.explain(module, x)
        out, (h_n, c_n) = module(x, hx)
    data = out.data if isinstance(out, PackedSequence) else out
    inputs = [v for v in (x, *hx) if isinstance(v, torch.Tensor) and v.requires_grad]
    weights = [torch.linspace(-1, 2, v.numel(), dtype=v.dtype).view_as(v) for v in (data, h_n, c_n)]
    loss = sum((v * w).sum() for v, w in zip((data, h_n, c_n), weights, strict=True))
    grads = torch.autograd.grad(loss, [*inputs, *module.parameters()], allow_unused=True)
    return [data, h_n, c_n, *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["dense", "ragged", "one"])
@pytest.mark.parametrize(
    ("options", "token"), list(itertools.product(OPTIONS, [False, True])), ids=lambda v: str(v).replace(" ", "")
)
def test_fused_route_gives_what_the_op_gives(options: dict, token: bool, layout: str, dtype: torch.dtype) -> None:
    kwargs = {"dtype": dtype, **options}
    module = fastlstm.TokenLSTM(5, 4, 3, **kwargs) if token else fastlstm.LSTM(5, 3, **kwargs)
    x, B = _case(module, layout, dtype, token), len(_lengths(layout))
    lstm = module.lstm if token else module
    n, P = lstm.num_layers * (1 + lstm.bidirectional), lstm.proj_size or 3
    hx = tuple(torch.randn(n, B, size, dtype=dtype, requires_grad=True) for size in (P, 3))
    expected = _outputs_and_grads(module, x, hx, on_op=True)
    fused = _outputs_and_grads(module, x, hx, on_op=False)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(fused, expected, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(module(x, hx)[1], (expected[1], expected[2]), **tolerance)


def test_repeated_input_gets_summed_gradient() -> None:
    """A tied weight and an input made from a weight, in first and second derivatives."""
    grads = []
    for on_reference in (False, True):
        torch.manual_seed(3)
        lstm = fastlstm.LSTM(4, 4, 2, dtype=torch.float64)
        lstm.weight_hh_l1 = lstm.weight_hh_l0
        x = lstm.weight_hh_l0[:6].view(3, 2, 4) * 0.5
        with fastlstm.backend("reference" if on_reference else None):
            out, _ = lstm(x)
        (first,) = torch.autograd.grad(out.square().sum(), lstm.weight_hh_l0, create_graph=True)
        grads.append((first, *torch.autograd.grad(first.square().sum(), lstm.weight_hh_l0)))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


def test_only_parameters_that_require_a_gradient_get_one() -> None:
    lstm, x = fastlstm.LSTM(3, 4, 2), torch.randn(5, 2, 3)
    lstm.requires_grad_(False)
    lstm.bias_hh_l1.requires_grad_()
    lstm.weight_ih_l0.requires_grad_()
    lstm(x)[0].square().sum().backward()
    with_grad = {name for name, p in lstm.named_parameters() if p.grad is not None}
    assert with_grad == {"bias_hh_l1", "weight_ih_l0"}
    reference = torch.nn.LSTM(3, 4, 2)
    reference.load_state_dict(lstm.state_dict())
    reference(x)[0].square().sum().backward()
    for name in with_grad:
        torch.testing.assert_close(lstm.get_parameter(name).grad, reference.get_parameter(name).grad)


@pytest.mark.parametrize("token", [False, True])
def test_a_state_below_frozen_weights_gets_its_gradient(token: bool) -> None:
    """The only thing in the first layer that wants one."""
    module = fastlstm.TokenLSTM(5, 4, 3, 2) if token else fastlstm.LSTM(4, 3, 2)
    module.requires_grad_(False)
    x = torch.randint(5, (7, 2)) if token else torch.randn(7, 2, 4)
    hx = tuple(torch.randn(2, 2, 3, requires_grad=True) for _ in range(2))
    grads = []
    for name in (None, "reference"):
        with fastlstm.backend(name):
            grads.append(torch.autograd.grad(module(x, hx)[0].square().sum(), hx))
    assert grads[1][0][0].abs().max() > 0
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_gradients_of_both_biases_are_two_tensors() -> None:
    lstm = fastlstm.LSTM(3, 4)
    lstm(torch.randn(5, 2, 3))[0].sum().backward()
    assert lstm.bias_ih_l0.grad.data_ptr() != lstm.bias_hh_l0.grad.data_ptr()
    torch.testing.assert_close(lstm.bias_ih_l0.grad, lstm.bias_hh_l0.grad)


def test_a_weight_changed_before_backward_is_noticed() -> None:
    lstm, x = fastlstm.LSTM(3, 4), torch.randn(5, 2, 3)
    out, _ = lstm(x)
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_tampered_batch_sizes_do_not_reach_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = fastlstm.LSTM(3, 4)
    monkeypatch.setattr(function, "forward", lambda *a, **k: pytest.fail("a kernel was called"))
    monkeypatch.setattr(function.FusedLSTM, "apply", lambda *a: pytest.fail("a kernel was called"))
    data = torch.randn(6, 3)
    for sizes in ([3, 2, 2], [2, 3, 1], [4, 2, 0], [7, -1]):
        with pytest.raises(RuntimeError):
            lstm(PackedSequence(data, torch.tensor(sizes)))


class Unchecked(fastlstm.LSTM):
    """Switches torch's checks of input and state off."""

    def check_forward_args(self, *args: object) -> None:
        pass

    def check_hidden_size(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("how", ["subclass", "instance"])
def test_overridden_checks_do_not_let_wrong_sizes_reach_a_kernel(how: str, grad: bool) -> None:
    def module(I: int) -> fastlstm.LSTM:
        lstm = Unchecked(I, 8) if how == "subclass" else fastlstm.LSTM(I, 8)
        lstm.check_forward_args = lstm.check_hidden_size = lambda *args: None
        return lstm

    zero = torch.zeros(1, 2, 8)
    with torch.set_grad_enabled(grad):
        with pytest.raises(RuntimeError, match=r"h0 has shape \[2, 8\], expected \[3, 8\]"):
            module(4)(torch.randn(5, 3, 4), (zero, zero))
        with pytest.raises(RuntimeError, match=r"x has shape \[5, 3, 2\], expected \[5, 3, 400\]"):
            module(400)(torch.randn(5, 3, 2))
        tokens = fastlstm.TokenLSTM(7, 4, 8)
        tokens.lstm = module(4)
        with pytest.raises(RuntimeError, match=r"h0 has shape \[2, 8\], expected \[3, 8\]"):
            tokens(torch.zeros(5, 3, dtype=torch.int64), (zero, zero))
        module(4)(torch.randn(5, 3, 4))
        assert fastlstm.last_plan().startswith("cpu: fused")


def test_ids_beyond_a_table_that_shrank_do_not_reach_a_kernel() -> None:
    model = fastlstm.TokenLSTM(9, 4, 3)
    model.embedding.weight = torch.nn.Parameter(torch.randn(5, 4))
    with pytest.raises(IndexError, match="ids hold 7, expected 0 to 4"):
        model(torch.tensor([[1], [7]]))


def test_a_table_without_rows_refuses_every_id() -> None:
    """No id is right there, which is said."""
    with pytest.raises(IndexError, match="expected 0 to -1"):
        fastlstm.TokenLSTM(0, 4, 16)(torch.zeros(3, 2, dtype=torch.int64))


def test_a_table_of_one_row_leaves_the_bias_alone() -> None:
    tokens = fastlstm.TokenLSTM(1, 4, 5)
    before = [p.detach().clone() for p in tokens.parameters()]
    tokens(torch.zeros(3, 2, dtype=torch.int64))[0].sum().backward()
    assert all(torch.equal(p, v) for p, v in zip(tokens.parameters(), before, strict=True))
