"""What torch asks of nn.LSTM in its own tests, asked with `torch.nn.LSTM = fastlstm.LSTM` in force.

Initial states, flat weights, tying, weight norm, pruning, packed and variable sequences, double backward.
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM
from torch.nn.utils import prune

import fastlstm
from tests.modules.pairs import pair


@pytest.fixture(autouse=True)
def _in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn, "LSTM", fastlstm.LSTM)
    assert nn.LSTM is fastlstm.LSTM


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 3}, {"bias": False}])
def test_initial_weights_names_and_order_are_those_of_nn_lstm(options: dict) -> None:
    torch.manual_seed(7)
    torch_lstm = TORCH_LSTM(3, 5, 2, **options)
    torch.manual_seed(7)
    lstm = nn.LSTM(3, 5, 2, **options)
    for a, b in zip(torch_lstm.named_parameters(), lstm.named_parameters(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    assert torch_lstm._flat_weights_names == lstm._flat_weights_names
    assert torch_lstm._all_weights == lstm._all_weights
    assert [[w.shape for w in layer] for layer in torch_lstm.all_weights] == [
        [w.shape for w in layer] for layer in lstm.all_weights
    ]
    torch.manual_seed(8)
    torch_lstm.reset_parameters()
    torch.manual_seed(8)
    lstm.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(torch_lstm.parameters(), lstm.parameters(), strict=True))
    lstm.flatten_parameters()
    assert lstm.extra_repr() == torch_lstm.extra_repr()


def test_every_public_name_of_nn_lstm_is_there() -> None:
    torch_lstm, lstm = pair(3, 5)
    assert [n for n in dir(torch_lstm) if not n.startswith("__") and not hasattr(lstm, n)] == []
    for name in ("check_forward_args", "permute_hidden", "get_expected_cell_size", "check_input", "check_hidden_size"):
        parameters = list(inspect.signature(getattr(lstm, name)).parameters)
        assert parameters == list(inspect.signature(getattr(torch_lstm, name)).parameters)


@pytest.mark.parametrize("proj", [0, 10])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_zero_is_the_initial_state(bidirectional: bool, proj: int) -> None:
    lstm = nn.LSTM(30, 20, 2, bidirectional=bidirectional, proj_size=proj)
    x, n = torch.randn(10, 32, 30), 4 if bidirectional else 2
    torch.testing.assert_close(
        lstm(x, (torch.zeros(n, 32, proj or 20), torch.zeros(n, 32, 20))), lstm(x), rtol=0, atol=0
    )


@pytest.mark.parametrize(("name", "count"), [("weight_hh_l0", 4), ("weight_hr_l0", 5), ("bias_ih_l0", 4)])
def test_weight_norm_can_be_applied_and_removed(name: str, count: int) -> None:
    lstm = nn.LSTM(32, 32, proj_size=6 if count == 5 else 0)
    x = torch.randn(4, 2, 32)
    before = lstm(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        lstm = nn.utils.weight_norm(lstm, name=name)
    assert sum(isinstance(p, nn.Parameter) for p in lstm._flat_weights) == count - 1
    torch.testing.assert_close(lstm(x)[0], before)
    with torch.no_grad():
        getattr(lstm, name + "_g").mul_(2)
        assert not torch.allclose(lstm(x)[0], before)
        getattr(lstm, name + "_g").div_(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        lstm = nn.utils.remove_weight_norm(lstm, name=name)
    assert sum(isinstance(p, nn.Parameter) for p in lstm._flat_weights) == count
    assert name in dict(lstm.named_parameters())
    assert name + "_g" not in dict(lstm.named_parameters())
    torch.testing.assert_close(lstm(x)[0], before)


def test_pruning_can_be_applied_and_removed() -> None:
    lstm, x = nn.LSTM(32, 32), torch.randn(1, 1, 32)
    with torch.no_grad():
        before = lstm(x)[0]
        prune.l1_unstructured(lstm, "weight_ih_l0", 0.5)
        assert sum(isinstance(p, nn.Parameter) for p in lstm._flat_weights) == 3
        assert not torch.equal(lstm(x)[0], before)
        prune.remove(lstm, "weight_ih_l0")
        assert sum(isinstance(p, nn.Parameter) for p in lstm._flat_weights) == 4
    assert "weight_ih_l0_orig" not in lstm._parameters


def test_a_weight_may_be_deleted_and_set_again_as_a_tensor() -> None:
    lstm, x = nn.LSTM(10, 6, 2), torch.randn(3, 2, 10)
    before = lstm(x)[0]
    weight = lstm.weight_hh_l0
    del lstm.weight_hh_l0
    assert not hasattr(lstm, "weight_hh_l0")
    lstm.double()
    lstm.weight_hh_l0 = weight.double()  # a tensor, no parameter
    torch.testing.assert_close(lstm(x.double())[0].float(), before)


@pytest.mark.parametrize("proj", [0, 10])
def test_tied_weights_stay_tied(proj: int) -> None:
    torch_lstm, lstm = pair(10, 20, batch_first=True, bidirectional=True, proj_size=proj)
    x, after = torch.randn(5, 4, 10), []
    for module in (torch_lstm, lstm):
        module.bias_ih_l0_reverse = module.bias_ih_l0
        assert len(list(module.parameters())) == (9 if proj else 7)
        module.double().float()
        assert module.bias_ih_l0_reverse is module.bias_ih_l0
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(x)[0].square().sum().backward()
            optimizer.step()
        after.append(module(x))
    torch.testing.assert_close(after[1], after[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x_grad", [True, False])
def test_gradgradcheck(bias: bool, x_grad: bool) -> None:
    lstm = nn.LSTM(4, 4, bias=bias, dtype=torch.float64)
    x = torch.rand(1, 3, 4, dtype=torch.float64, requires_grad=x_grad)

    def call(x: torch.Tensor, *_: torch.Tensor) -> tuple:
        out, state = lstm(x)
        return out, *state

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(call, (x, *lstm.parameters()), check_batched_grad=True)


def test_double_backward_in_float32() -> None:
    torch_lstm, lstm = pair(2, 3)
    x, grads = torch.randn(4, 5, 2), []
    for module in (torch_lstm, lstm):
        inputs = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(module(inputs)[0].sum(), inputs, create_graph=True)
        first.square().sum().backward()
        grads.append([inputs.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_backward_gives_the_same_gradients(dtype: torch.dtype) -> None:
    lstm, x = nn.LSTM(10, 20, 2, dtype=dtype), torch.randn(5, 6, 10, dtype=dtype, requires_grad=True)
    out, first = lstm(x)[0].sum(), None
    for _ in range(4):
        lstm.zero_grad()
        x.grad = None
        out.backward(retain_graph=True)
        grads = [x.grad, *(p.grad.clone() for p in lstm.parameters())]
        first = first or [g.clone() for g in grads]
        assert all(torch.equal(a, b) for a, b in zip(grads, first, strict=True))


def test_no_rows_are_allowed_and_no_steps_are_refused() -> None:
    lstm = nn.LSTM(3, 4)
    out, (h, c) = lstm(torch.zeros(5, 0, 3))
    assert (out.shape, h.shape, c.shape) == ((5, 0, 4), (1, 0, 4), (1, 0, 4))
    out.sum().backward()
    for gradients, bidirectional in itertools.product((True, False), repeat=2):
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match="Expected sequence length to be lar"):
            nn.LSTM(5, 6, bidirectional=bidirectional)(torch.ones(0, 10, 5))


def test_dropout_may_change_later_and_modules_may_be_saved() -> None:
    torch_lstm, lstm = pair(10, 20, 2)
    x = torch.rand(3, 2, 10)
    for p, train in itertools.product((0, 0.5, 0, 0.7, 1, 0.2), (True, False)):
        results = []
        for module in (torch_lstm, lstm):
            module.dropout = p
            torch.manual_seed(3)
            results.append(module.train(train)(x))
        torch.testing.assert_close(results[1], results[0])
    buffer = io.BytesIO()
    torch.save(lstm, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    again.flatten_parameters()
    for other in (again, copy.deepcopy(lstm)):
        torch.testing.assert_close(other.eval()(x), lstm.eval()(x), rtol=0, atol=0)
