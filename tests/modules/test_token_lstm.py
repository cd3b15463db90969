"""TokenLSTM: what it adds to LSTM beside the table, on ids."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm

V = 7


def vectors(ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(ids, V).float()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_reset_on_ids_is_reset_on_vectors(batch_first, bidirectional):
    torch.manual_seed(3)
    model = fastlstm.TokenLSTM(V, None, 5, 2, batch_first=batch_first, bidirectional=bidirectional)
    ids, reset = torch.randint(V, (6, 4)), torch.rand(6, 4) < 0.3
    out, state = model(ids, reset=reset)
    expected, other = model.lstm(vectors(ids), reset=reset)
    torch.testing.assert_close((out, *state), (expected, *other))
    assert not torch.allclose(out, model(ids)[0])
    torch.testing.assert_close(model(ids[0], reset=reset[0])[0], model.lstm(vectors(ids[0]), reset=reset[0])[0])
    lengths = [6 - batch_first * 2, 3, 3, 1] + [1, 1] * batch_first
    packed, mask = (pack_padded_sequence(value, lengths, batch_first=batch_first) for value in (ids, reset))
    out = model(packed, reset=mask)[0].data
    expected = model.lstm(PackedSequence(vectors(packed.data), *packed[1:]), reset=mask)[0].data
    torch.testing.assert_close(out, expected)


def test_a_reset_is_a_new_beginning():
    model = fastlstm.TokenLSTM(V, 3, 5)
    ids, reset = torch.randint(V, (6, 2)), torch.zeros(6, 2, dtype=torch.bool)
    reset[4] = True
    torch.testing.assert_close(model(ids, reset=reset)[0][4:], model(ids[4:])[0])


def test_a_reset_mask_of_another_shape_or_for_torchs_lstm_is_refused():
    model = fastlstm.TokenLSTM(V, None, 5)
    ids = torch.randint(V, (6, 2))
    with pytest.raises(RuntimeError, match=r"reset is torch.bool with shape \[6\], expected torch.bool with shape"):
        model(ids, reset=torch.zeros(6, dtype=torch.bool))
    fastlstm.restore(model)
    with pytest.raises(RuntimeError, match=r"torch.nn.LSTM takes no reset mask; call fastlstm.replace\(model\)"):
        model(ids, reset=torch.zeros(6, 2, dtype=torch.bool))


@pytest.mark.parametrize("batch_first", [False, True])
def test_cell_states_and_gates_on_ids_are_those_on_vectors(batch_first):
    model = fastlstm.TokenLSTM(V, None, 5, 2, batch_first=batch_first)
    ids = torch.randint(V, (6, 4))
    asked = {"return_cell_states": True, "return_gates": True}
    for one in (ids, ids[0]):
        torch.testing.assert_close(model(one, **asked), model.lstm(vectors(one), **asked))
    assert len(model(ids, return_gates=True)) == 3
    packed = pack_padded_sequence(ids, [4] * 6 if batch_first else [6, 5, 2, 1], batch_first=batch_first)
    outputs = model(packed, **asked)
    expected = model.lstm(PackedSequence(vectors(packed.data), *packed[1:]), **asked)
    for actual, wanted in zip([*outputs[2], *outputs[3]], [*expected[2], *expected[3]], strict=True):
        torch.testing.assert_close(actual.data, wanted.data)
    fastlstm.restore(model)
    with pytest.raises(RuntimeError, match=r"torch.nn.LSTM returns no cell states or gates; call fastlstm.replace"):
        model(ids, return_gates=True)
