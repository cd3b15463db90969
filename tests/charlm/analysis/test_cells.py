"""Finding cells: scores are right, planted cells come first, chance and echoes do not pass, clamping is causal."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastlstm.charlm import CharLMError, find_cells, trace
from fastlstm.charlm.analysis.cells import _CellSearch
from fastlstm.charlm.analysis.excerpt import of_text
from fastlstm.charlm.analysis.labels import labels
from tests.charlm.planted import quoted_prose, untrained, with_quote_cell

TEXT = quoted_prose(30_000)
SYMBOLS = "".join(sorted(set(TEXT)))


@pytest.mark.parametrize(("layer", "unit"), [(0, 17), (1, 23)])
def test_a_planted_cell_is_found_first(layer, unit):
    """One in layer 1 copies cell 0 of layer 0, and is as good as that."""
    findings = find_cells(with_quote_cell(SYMBOLS, layer, unit), TEXT)
    row = findings.rows[0]
    assert (row.label, row.status) == ("inside quotes", "found")
    assert (row.layer, row.unit) in {(layer, unit), (0, 0 if layer else unit)}
    assert row.fit > 0.999
    assert row.held_out > 0.999
    assert row.held_out > row.control
    assert row.false_rate <= 0.05
    assert findings.passes[layer, unit]
    assert findings.passes.sum() == 1 + layer  # in layer 1 it copies another
    assert findings.rows[findings.label[layer, unit]].label == "inside quotes"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scale", [0.0, 0.08, 0.5])
def test_an_untrained_model_has_no_cells(seed, scale):
    """Whatever its weights; some of its units echo capitals or digits, and are called so."""
    findings = find_cells(untrained(SYMBOLS, 48, 2, seed, scale), TEXT[:20_000])
    assert not findings.passes.any()
    assert {row.status for row in findings.rows} <= {"near", "none", "echo", "rare"}
    assert len(findings.rows) == len(labels("x"))


def test_unit_is_chosen_on_the_first_half_alone():
    """A unit that is perfect on the first half and noise on the second is the row's, and fails; another one passes."""
    piece = of_text(untrained(SYMBOLS), TEXT)
    quoted = next(label for label in labels(TEXT) if label.name == "inside quotes")
    rng, half = np.random.default_rng(0), len(TEXT) // 2
    fleeting, steady = 2 * quoted.values - 1.0, quoted.values - 0.5 + 0.1 * rng.normal(size=len(TEXT))
    fleeting[half:] = rng.normal(size=len(TEXT) - half)
    c = np.stack([fleeting, steady], 1)
    signals = np.concatenate([c, np.zeros_like(c)], 1).astype(np.float16)
    search = _CellSearch(piece, signals, (1, 2, 2), [quoted], 40, 0)
    row = search.rows["inside quotes"]
    assert (row.unit, row.status, row.passing) == (0, "none", 1)
    assert row.fit > 0.999
    assert row.held_out == pytest.approx(0.5, abs=0.05)


def _search(strengths):
    """The row of `inside quotes` for one unit that follows it with noise, by the strength on either half."""
    piece = of_text(untrained(SYMBOLS), TEXT)
    quoted = next(label for label in labels(TEXT) if label.name == "inside quotes")
    rng, half = np.random.default_rng(0), len(TEXT) // 2
    strength = np.where(np.arange(len(TEXT)) < half, *strengths)
    c = (strength * quoted.values + rng.normal(size=len(TEXT)))[:, None]
    signals = np.concatenate([c, np.zeros_like(c)], 1).astype(np.float16)
    return _CellSearch(piece, signals, (1, 2, 1), [quoted], 40, 0).rows["inside quotes"]


def test_the_held_out_half_decides():
    """AUC 0.895 where the unit was chosen and 0.95 held out is found; the other way round it is not."""
    row = _search((1.77, 2.4))
    assert row.fit == pytest.approx(0.895, abs=0.01)
    assert row.fit < 0.9
    assert (row.status, row.passing) == ("found", 1)
    assert 0.9 < row.low < row.held_out < row.high
    row = _search((2.4, 1.5))
    assert (row.status, row.passing) == ("none", 0)
    assert row.low < row.held_out < row.high < 0.9


def test_a_near_miss_is_called_so():
    """The held-out score is under the bar of 0.9, and its interval reaches it."""
    row = _search((1.76, 1.76))
    assert row.held_out < 0.9 <= row.high
    assert (row.status, row.passing) == ("near", 0)


def test_rows_for_labels_without_a_cell():
    findings = find_cells(untrained(SYMBOLS), TEXT)
    rows = {row.label: row for row in findings.rows}
    assert rows["inside quotes"].status == "none"
    assert 0.5 < rows["inside quotes"].held_out < 0.9
    assert rows["inside quotes"].threshold is None
    assert rows["inside a comment"].status == "rare"
    assert rows["inside a comment"].fit is None
    assert rows["upper case"].last_two > 0.999


def test_findings_as_json():
    findings = find_cells(with_quote_cell(SYMBOLS, 0, 3), TEXT)
    content = json.loads(json.dumps(findings.as_json(), allow_nan=False))
    assert content["cells"] == 48
    assert content["passing"] == int(findings.passes.sum())
    assert {"layer": 0, "unit": 3} in content["passing_cells"]
    assert content["share"] == pytest.approx(findings.passes.sum() / 48)
    assert content["threshold"] == {"auc": 0.9, "rank_correlation": 0.7, "false_rate": 0.05, "shifts": 40}
    assert [row["label"] for row in content["rows"]] == [row.label for row in findings.rows]
    assert set(content["rows"][0]["clamp"]) == {"value", "label_nats", "other_nats"}


def test_saturation_counts_gates():
    lm = with_quote_cell(SYMBOLS, 0, 3)
    gates = trace(lm, TEXT[:5000]).gates
    findings = find_cells(lm, TEXT[:5000])
    np.testing.assert_allclose(findings.saturation[:, 0], (gates[:, :, [0, 1, 3]] < 0.1).mean(1), atol=2e-3)
    np.testing.assert_allclose(findings.saturation[:, 1], (gates[:, :, [0, 1, 3]] > 0.9).mean(1), atol=2e-3)
    assert findings.saturation[0, 1, 1, 3] > 0.9  # the planted cell's forget gate is open but at quotes


def test_short_texts_and_few_shifts_are_refused():
    lm = untrained(SYMBOLS)
    with pytest.raises(CharLMError, match="too few to score"):
        find_cells(lm, "abc")
    with pytest.raises(CharLMError, match="at least 20"):
        find_cells(lm, TEXT, shifts=5)
    assert "never saw" in find_cells(lm, TEXT[:3000] + "\u2603").notes[0]
