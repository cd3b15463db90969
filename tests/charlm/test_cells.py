"""Finding cells: scores are right, planted cells come first, chance and echoes do not pass, clamping is causal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import quoted_prose, untrained, with_quote_cell

from fastlstm.charlm import CharLMError, find_cells, trace
from fastlstm.charlm.cells import _Board
from fastlstm.charlm.clamp import Clamps, clamped, held_at
from fastlstm.charlm.excerpt import of_text
from fastlstm.charlm.labels import labels
from fastlstm.charlm.ranking import effect, midranks, score, threshold

TEXT = quoted_prose(30_000)
SYMBOLS = "".join(sorted(set(TEXT)))
values = st.lists(st.integers(-4, 4), min_size=4, max_size=60)


def plain_ranks(x):
    return np.array([(x < v).sum() + (x == v).sum() / 2 - len(x) / 2 for v in x])


@settings(max_examples=50, deadline=None)
@given(values, st.data())
def test_effects_are_auc_and_rank_correlation(signal, data):
    x = np.array(signal, float)
    y = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))))
    np.testing.assert_array_equal(midranks(x[:, None])[:, 0], plain_ranks(x))
    yes = y > 1
    if yes.any() and not yes.all():
        auc = ((x[yes][:, None] > x[~yes]) + 0.5 * (x[yes][:, None] == x[~yes])).mean()
        assert effect(x, yes, True) == pytest.approx(2 * auc - 1, abs=1e-5)
    if len(set(x)) > 1 and len(set(y)) > 1:
        rho = np.corrcoef(plain_ranks(x), plain_ranks(y))[0, 1]
        assert effect(x, y, False) == pytest.approx(rho, abs=1e-5)


def test_smooth_noise_is_no_find():
    """Slow noise and a label in long runs correlate, as the shifted labels show; a naive permutation would not."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8000, 200))
    for t in range(1, len(noise)):
        noise[t] += 0.99 * noise[t - 1]
    label = np.repeat(rng.integers(0, 2, 80), 100)
    found = score(noise.astype(np.float16), label[None], np.array([True]), 40)
    assert (found.both >= 0.2).sum() > 3
    assert threshold(found.both[0], found.control[:, 0], 0.2, 0.05)[0] == np.inf
    naive = np.stack([np.abs([effect(noise[:, u], rng.permutation(label), True) for u in range(20)])])
    assert naive.max() < 0.1


def test_the_threshold_rises_with_chance():
    both, control = np.array([0.95, 0.9, 0.85, 0.2]), np.zeros((40, 4))
    assert threshold(both, control, 0.8, 0.05) == (0.85, pytest.approx(1 / 40 / 3))
    control[:8, 0] = 0.87
    assert threshold(both, control, 0.8, 0.05) == (0.9, pytest.approx(1 / 40 / 2))
    control[:, 0] = 0.99
    assert threshold(both, control, 0.8, 0.05) == (np.inf, 1.0)


@pytest.mark.parametrize(("layer", "unit"), [(0, 17), (1, 23)])
def test_a_planted_cell_is_found_first(layer, unit):
    """One in layer 1 copies cell 0 of layer 0, and is as good as that."""
    found = find_cells(with_quote_cell(SYMBOLS, layer, unit), TEXT)
    row = found.rows[0]
    assert (row.label, row.status) == ("inside quotes", "found")
    assert (row.layer, row.unit) in {(layer, unit), (0, 0 if layer else unit)}
    assert row.fit > 0.999
    assert row.held_out > 0.999
    assert row.held_out > row.control
    assert row.false_rate <= 0.05
    assert found.passes[layer, unit]
    assert found.passes.sum() == 1 + layer  # in layer 1 it copies another
    assert found.rows[found.label[layer, unit]].label == "inside quotes"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scale", [0.0, 0.08, 0.5])
def test_an_untrained_model_has_no_cells(seed, scale):
    """Whatever its weights; some of its units echo capitals or digits, and are called so."""
    found = find_cells(untrained(SYMBOLS, 48, 2, seed, scale), TEXT[:20_000])
    assert not found.passes.any()
    assert {row.status for row in found.rows} <= {"none", "echo", "rare"}
    assert len(found.rows) == len(labels("x"))


def test_the_second_half_chooses_nothing():
    """A unit that is perfect on the first half and noise on the second is the row's, and fails; another one passes."""
    piece = of_text(untrained(SYMBOLS), TEXT)
    quoted = next(label for label in labels(TEXT) if label.name == "inside quotes")
    rng, half = np.random.default_rng(0), len(TEXT) // 2
    fleeting, steady = 2 * quoted.values - 1.0, quoted.values - 0.5 + 0.1 * rng.normal(size=len(TEXT))
    fleeting[half:] = rng.normal(size=len(TEXT) - half)
    c = np.stack([fleeting, steady], 1)
    signals = np.concatenate([c, np.zeros_like(c)], 1).astype(np.float16)
    board = _Board(piece, signals, (1, 2, 2), [quoted], 40, 0)
    row = board.rows["inside quotes"]
    assert (row.unit, row.status, row.passing) == (0, "none", 1)
    assert row.fit > 0.999
    assert row.held_out == pytest.approx(0.5, abs=0.05)


def test_rows_for_labels_without_a_cell():
    found = find_cells(untrained(SYMBOLS), TEXT)
    rows = {row.label: row for row in found.rows}
    assert rows["inside quotes"].status == "none"
    assert 0.5 < rows["inside quotes"].held_out < 0.9
    assert rows["inside quotes"].threshold is None
    assert rows["inside a comment"].status == "rare"
    assert rows["inside a comment"].fit is None
    assert rows["upper case"].last_two > 0.999


def test_findings_as_json():
    found = find_cells(with_quote_cell(SYMBOLS, 0, 3), TEXT)
    content = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert content["cells"] == 48
    assert content["passing"] == int(found.passes.sum())
    assert {"layer": 0, "unit": 3} in content["passing_cells"]
    assert content["share"] == pytest.approx(found.passes.sum() / 48)
    assert content["threshold"] == {"auc": 0.9, "rank_correlation": 0.7, "false_rate": 0.05, "shifts": 40}
    assert [row["label"] for row in content["rows"]] == [row.label for row in found.rows]
    assert set(content["rows"][0]["clamp"]) == {"value", "label_nats", "other_nats"}


def test_saturation_counts_gates():
    lm = with_quote_cell(SYMBOLS, 0, 3)
    gates = trace(lm, TEXT[:5000]).gates
    found = find_cells(lm, TEXT[:5000])
    np.testing.assert_allclose(found.saturation[:, 0], (gates[:, :, [0, 1, 3]] < 0.1).mean(1), atol=2e-3)
    np.testing.assert_allclose(found.saturation[:, 1], (gates[:, :, [0, 1, 3]] > 0.9).mean(1), atol=2e-3)
    assert found.saturation[0, 1, 1, 3] > 0.9  # the planted cell's forget gate is open but at quotes


def test_a_clamped_cell_keeps_its_value():
    lm = untrained(SYMBOLS, 10, 2)
    for layer in range(2):
        model = clamped(lm.model, layer, 4)
        ids = torch.from_numpy(lm.vocab.encode(TEXT[:300]).astype(np.int64))[:, None]
        with torch.no_grad():
            _, _, cells = model.rnn(ids, held_at(model, layer, 4, -0.7), return_cell_states=True)
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
    effects = Clamps(lm, ids)(1, 5, c, quoted, True)
    assert effects.value == pytest.approx(-1, abs=0.02)
    assert abs(effects.other_nats) < 1e-3
    p_in, p_out = (np.exp(x) / (np.exp(x) + len(SYMBOLS) - 1) for x in (2 * np.tanh(1), -2 * np.tanh(1)))
    last = (quoted[:-1] & (np.array(list(TEXT))[1:] == '"')).sum() / quoted[:-1].sum()
    rise = last * (np.log(p_in) - np.log(p_out)) + (1 - last) * (np.log(1 - p_in) - np.log(1 - p_out))
    assert effects.label_nats == pytest.approx(rise, rel=0.02)


def test_bad_input():
    lm = untrained(SYMBOLS)
    with pytest.raises(CharLMError, match="too few to score"):
        find_cells(lm, "abc")
    with pytest.raises(CharLMError, match="at least 20"):
        find_cells(lm, TEXT, shifts=5)
    assert "never saw" in find_cells(lm, TEXT[:3000] + "\u2603").notes[0]
