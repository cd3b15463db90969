"""Clamping a cell: its value stays, and the loss rises where the model uses it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastlstm.charlm import trace
from fastlstm.charlm.analysis.clamp import ClampTest, clamped, clamped_state
from fastlstm.charlm.analysis.labels import labels
from tests.charlm.planted import quoted_prose, untrained, with_quote_cell

TEXT = quoted_prose(30_000)
SYMBOLS = "".join(sorted(set(TEXT)))


def test_a_clamped_cell_keeps_its_value():
    lm = untrained(SYMBOLS, 10, 2)
    for layer in range(2):
        model = clamped(lm.model, layer, 4)
        ids = torch.from_numpy(lm.vocab.encode(TEXT[:300]).astype(np.int64))[:, None]
        with torch.no_grad():
            _, _, cells = model.rnn(ids, clamped_state(model, layer, 4, -0.7), return_cell_states=True)
        np.testing.assert_allclose(cells[layer][:, 0, 4].numpy(), -0.7, atol=1e-6)
        assert cells[1 - layer][:, 0, 4].std() > 1e-3
    assert not torch.equal(lm.model.rnn.lstm.weight_ih_l0, clamped(lm.model, 0, 4).rnn.lstm.weight_ih_l0)


def test_clamping_shows_what_the_model_uses():
    """A model that knows from its cell alone that a quote will end: without it, it is wrong there and only there."""
    lm = with_quote_cell(SYMBOLS, 1, 5)
    with torch.no_grad():
        lm.model.out.weight.zero_()
        lm.model.out.bias.zero_()
        lm.model.out.weight[SYMBOLS.index('"'), 5] = 2.0  # a quote is likelier inside quotes
    ids = lm.vocab.encode(TEXT)
    quoted = next(label for label in labels(TEXT) if label.name == "inside quotes").values
    c = trace(lm, TEXT).c[1, :, 5]
    effects = ClampTest(lm, ids)(1, 5, c, quoted, True)
    assert effects.value == pytest.approx(-1, abs=0.02)
    assert abs(effects.other_nats) < 1e-3
    p_in, p_out = (np.exp(x) / (np.exp(x) + len(SYMBOLS) - 1) for x in (2 * np.tanh(1), -2 * np.tanh(1)))
    last = (quoted[:-1] & (np.array(list(TEXT))[1:] == '"')).sum() / quoted[:-1].sum()
    rise = last * (np.log(p_in) - np.log(p_out)) + (1 - last) * (np.log(1 - p_in) - np.log(1 - p_out))
    assert effects.label_nats == pytest.approx(rise, rel=0.02)
