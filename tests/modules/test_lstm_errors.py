"""What is wrong is said as nn.LSTM says it, word for word, with `torch.nn.LSTM = fastlstm.LSTM` in force."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM
from torch.nn.utils import rnn

import fastlstm
from tests.modules.pairs import pair


@pytest.fixture(autouse=True)
def _in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn, "LSTM", fastlstm.LSTM)


@pytest.mark.parametrize("proj", [0, 2])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    ("x", "h", "c"),
    [
        ((6, 7, 3), (2, 4, 0), (2, 4, 5)),
        ((6, 4, 3), (2, 7, 0), (2, 7, 5)),
        ((6, 4, 7), (2, 4, 0), (2, 4, 5)),
        ((6, 4, 3), (2, 4, 7), (2, 4, 5)),
        ((6, 4, 3), (2, 4, 0), (2, 4, 7)),
        ((6, 4, 3), (7, 4, 0), (2, 4, 5)),
        ((6, 4, 3), (2, 4, 0), (7, 4, 5)),
        ((6, 4, 3), (1, 4, 0), (1, 4, 5)),
        ((1, 1, 3), (2, 4, 0), (2, 4, 5)),
        ((1, 1, 3), (2, 1, 4), (2, 1, 5)),
        ((0, 4, 3), (2, 4, 0), (2, 4, 5)),
    ],
)
def test_wrong_shapes_raise_the_errors_of_nn_lstm(x: tuple, h: tuple, c: tuple, gradients: bool, proj: int) -> None:
    """The same error, word for word, with gradients and without."""
    torch_lstm, lstm = pair(3, 5, 2, proj_size=proj)
    h = tuple(n or (proj or 5) for n in h)
    with torch.set_grad_enabled(gradients):
        messages = []
        for module in (torch_lstm, lstm):
            with pytest.raises((RuntimeError, ValueError)) as raised:
                module(torch.randn(x), (torch.randn(h), torch.randn(c)))
            messages.append((raised.type, str(raised.value)))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("gradients", [True, False])
def test_other_wrong_arguments_raise_the_errors_of_nn_lstm(gradients: bool) -> None:
    torch_lstm, lstm = pair(3, 5)
    batch, bad_type = torch.randn(2, 4, 3), torch.randn(2, 4, 3).double()
    state = torch.randn(1, 4, 5)
    for args in (
        (torch.randn(3),), (torch.randn(1, 2, 4, 3),), (bad_type,), (batch.long(),), (batch, (state[0], state[0])),
        (torch.randn(2, 3), (state, state)), (batch, (state.double(), state.double())), (batch, (state, state.double())),
        (batch.to("meta"),), (batch, (state.to("meta"), state)), (batch, (state,)),
        (batch[0], (state[:, 0, :3], state[:, 0])), (torch.nested.nested_tensor([batch[0], batch[1, :2]]),),
    ):  # fmt: skip
        messages = []
        with torch.set_grad_enabled(gradients):
            for module in (torch_lstm, lstm):
                with pytest.raises(Exception) as raised:  # noqa: PT011
                    module(*args)
                messages.append((raised.type, str(raised.value)))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_state_raises_the_error_of_nn_lstm(packed: bool) -> None:
    torch_lstm, lstm = pair(3, 5)
    x = rnn.pack_sequence([torch.randn(2, 3)]) if packed else torch.randn(2, 1, 3)
    h = torch.zeros(1, 1, 5)
    for hx in (h, [h], (h, h, h), (), (h, None), (None, h), 5, "ab", {0: h, 1: h}, (h.double(), h), (h[0], h[0])):
        for gradients in (True, False):
            messages = []
            with torch.set_grad_enabled(gradients):
                for module in (torch_lstm, lstm):
                    with pytest.raises(Exception) as raised:  # noqa: PT011
                        module(x, hx)
                    messages.append((raised.type, str(raised.value)))
            assert messages[0] == messages[1]
    for module in (torch_lstm, lstm):
        module(x, [h, h])


@pytest.mark.parametrize("B", [1, 4])
def test_packed_input_with_a_state_for_another_number_of_sequences_is_refused(B: int) -> None:
    """nn.LSTM does not check this: it returns memory that nobody wrote. Here it is an error."""
    packed, state = rnn.pack_sequence([torch.randn(2, 3), torch.randn(1, 3)]), torch.randn(1, B, 5)
    for gradients in (True, False):
        with (
            torch.set_grad_enabled(gradients),
            pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 5"),
        ):
            nn.LSTM(3, 5)(packed, (state, state))


def _made(make: type, args: tuple, kwargs: dict) -> tuple:
    """What construction raises and warns, with the line that the warning blames."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = repr(make(*args, **kwargs))
        except Exception as error:
            outcome = (type(error), str(error))
    return outcome, [(w.category, str(w.message), w.filename == __file__) for w in caught]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}), ((3,), {}), ((3, 5, 2, True, False, 0.5, True, 2), {}), ((3, 5), {"nonsense": 1}),
        ((3, 5), {"dropout": 0.5}), ((3, 5, 1, True, False, 0.5), {}), ((3, 5), {"dropout": 1}),
        ((3, 5, 2), {"dropout": True}), ((3, 5, 2), {"dropout": -0.1}), ((3, 5, 2), {"dropout": 1.1}),
        ((3, 5, 2), {"dropout": "0.5"}), ((3, 5), {"dropout": None}), ((3, 5), {"dropout": True}),
        ((3, 5), {"bias": 1}), ((3, 5), {"batch_first": 0}), ((3.0, 5), {}), ((3, 5.0), {}), ((0, 5), {}), ((-1, 5), {}),
        ((3, 0), {}), ((3, -5), {}), ((3, 5, 0), {}), ((3, 5, -1), {}), ((3, 5), {"proj_size": -1}),
        ((3, 5), {"proj_size": 5}), ((3, 5), {"proj_size": 6}), ((3, 5), {"proj_size": 4, "bidirectional": True}),
        ((3, 5), {"input_size": 3}), ((3, 5, 1.0), {}), (("3", 5), {}), ((3, 5), {"dtype": torch.int64}),
        ((3, 5, 1, True, False, 0.0, False, 0, "meta", torch.float64), {}), ((True, 5), {}),
        ((), {"input_size": 3, "hidden_size": 5, "num_layers": 2, "dropout": 0.25}),
    ],
)  # fmt: skip
def test_constructor_raises_and_warns_as_nn_lstm_does(args: tuple, kwargs: dict) -> None:
    actual, expected = _made(nn.LSTM, args, kwargs), _made(TORCH_LSTM, args, kwargs)
    expected_text = str(expected[0]).replace("torch.nn.modules.rnn.", "fastlstm.modules.lstm.")
    assert str(actual[0]) == expected_text
    assert [w[:2] for w in actual[1]] == [w[:2] for w in expected[1]]
    assert all(at_the_call for _, _, at_the_call in actual[1])  # at the line that made the module
