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
def test_initial_draws_names_and_order(options: dict) -> None:
    torch.manual_seed(7)
    theirs = TORCH_LSTM(3, 5, 2, **options)
    torch.manual_seed(7)
    mine = nn.LSTM(3, 5, 2, **options)
    for a, b in zip(theirs.named_parameters(), mine.named_parameters(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    assert theirs._flat_weights_names == mine._flat_weights_names
    assert theirs._all_weights == mine._all_weights
    assert [[w.shape for w in layer] for layer in theirs.all_weights] == [
        [w.shape for w in layer] for layer in mine.all_weights
    ]
    torch.manual_seed(8)
    theirs.reset_parameters()
    torch.manual_seed(8)
    mine.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), mine.parameters(), strict=True))
    mine.flatten_parameters()
    assert mine.extra_repr() == theirs.extra_repr()


def test_every_public_name_of_nn_lstm_is_there() -> None:
    theirs, mine = pair(3, 5)
    assert [n for n in dir(theirs) if not n.startswith("__") and not hasattr(mine, n)] == []
    for name in ("check_forward_args", "permute_hidden", "get_expected_cell_size", "check_input", "check_hidden_size"):
        mine_takes = list(inspect.signature(getattr(mine, name)).parameters)
        assert mine_takes == list(inspect.signature(getattr(theirs, name)).parameters)


@pytest.mark.parametrize("proj", [0, 10])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_zero_is_the_initial_state(bidirectional: bool, proj: int) -> None:
    lstm = nn.LSTM(30, 20, 2, bidirectional=bidirectional, proj_size=proj)
    x, n = torch.randn(10, 32, 30), 4 if bidirectional else 2
    torch.testing.assert_close(
        lstm(x, (torch.zeros(n, 32, proj or 20), torch.zeros(n, 32, 20))), lstm(x), rtol=0, atol=0
    )


@pytest.mark.parametrize(("name", "count"), [("weight_hh_l0", 4), ("weight_hr_l0", 5), ("bias_ih_l0", 4)])
def test_weight_norm_there_and_back(name: str, count: int) -> None:
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


def test_pruning_there_and_back() -> None:
    lstm, x = nn.LSTM(32, 32), torch.randn(1, 1, 32)
    with torch.no_grad():
        before = lstm(x)[0]
        prune.l1_unstructured(lstm, "weight_ih_l0", 0.5)
        assert sum(isinstance(p, nn.Parameter) for p in lstm._flat_weights) == 3
        assert not torch.equal(lstm(x)[0], before)
        prune.remove(lstm, "weight_ih_l0")
        assert sum(isinstance(p, nn.Parameter) for p in lstm._flat_weights) == 4
    assert "weight_ih_l0_orig" not in lstm._parameters


def test_a_weight_deleted_moved_and_given_back() -> None:
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
    theirs, mine = pair(10, 20, batch_first=True, bidirectional=True, proj_size=proj)
    x, after = torch.randn(5, 4, 10), []
    for lstm in (theirs, mine):
        lstm.bias_ih_l0_reverse = lstm.bias_ih_l0
        assert len(list(lstm.parameters())) == (9 if proj else 7)
        lstm.double().float()
        assert lstm.bias_ih_l0_reverse is lstm.bias_ih_l0
        optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            lstm(x)[0].square().sum().backward()
            optimizer.step()
        after.append(lstm(x))
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
    theirs, mine = pair(2, 3)
    x, found = torch.randn(4, 5, 2), []
    for lstm in (theirs, mine):
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(lstm(given)[0].sum(), given, create_graph=True)
        first.square().sum().backward()
        found.append([given.grad, *(p.grad for p in lstm.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backward_again_and_again(dtype: torch.dtype) -> None:
    lstm, x = nn.LSTM(10, 20, 2, dtype=dtype), torch.randn(5, 6, 10, dtype=dtype, requires_grad=True)
    out, first = lstm(x)[0].sum(), None
    for _ in range(4):
        lstm.zero_grad()
        x.grad = None
        out.backward(retain_graph=True)
        grads = [x.grad, *(p.grad.clone() for p in lstm.parameters())]
        first = first or [g.clone() for g in grads]
        assert all(torch.equal(a, b) for a, b in zip(grads, first, strict=True))


def test_no_rows_and_no_steps() -> None:
    lstm = nn.LSTM(3, 4)
    out, (h, c) = lstm(torch.zeros(5, 0, 3))
    assert (out.shape, h.shape, c.shape) == ((5, 0, 4), (1, 0, 4), (1, 0, 4))
    out.sum().backward()
    for gradients, bidirectional in itertools.product((True, False), repeat=2):
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match="Expected sequence length to be lar"):
            nn.LSTM(5, 6, bidirectional=bidirectional)(torch.ones(0, 10, 5))


def test_dropout_changed_later_and_saved_modules() -> None:
    theirs, mine = pair(10, 20, 2)
    x = torch.rand(3, 2, 10)
    for p, train in itertools.product((0, 0.5, 0, 0.7, 1, 0.2), (True, False)):
        found = []
        for lstm in (theirs, mine):
            lstm.dropout = p
            torch.manual_seed(3)
            found.append(lstm.train(train)(x))
        torch.testing.assert_close(found[1], found[0])
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    again.flatten_parameters()
    for other in (again, copy.deepcopy(mine)):
        torch.testing.assert_close(other.eval()(x), mine.eval()(x), rtol=0, atol=0)
