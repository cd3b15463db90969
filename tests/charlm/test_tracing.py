"""The numbers inside a model: traces equal one plain call of the model, in pieces or whole, whatever the length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import quoted_prose, untrained, with_quote_cell

from fastlstm.charlm import CharLMError, pieces, trace
from fastlstm.charlm.model import CharModel

SYMBOLS = "".join(sorted(set(quoted_prose(5000))))
ALL = ("h", "c", "gates", "probabilities")


def plainly(model: CharModel, ids: np.ndarray) -> dict[str, np.ndarray]:
    """One step after another by torch's own formula of the LSTM."""
    L, H = model.rnn.num_layers, model.out.in_features
    h, c = (torch.zeros(L, H, dtype=torch.float64) for _ in range(2))
    weights = {name: value.double() for name, value in model.rnn.lstm.state_dict().items()}
    kept = {"h": [], "c": [], "gates": [], "probabilities": []}
    for one in ids:
        x = torch.nn.functional.one_hot(torch.tensor(int(one)), model.rnn.num_embeddings).double()
        gates = []
        for k in range(L):
            z = weights[f"weight_ih_l{k}"] @ x + weights[f"weight_hh_l{k}"] @ h[k]
            z = (z + weights[f"bias_ih_l{k}"] + weights[f"bias_hh_l{k}"]).view(4, H)
            g = torch.stack([z[0].sigmoid(), z[1].sigmoid(), z[2].tanh(), z[3].sigmoid()])
            c[k] = g[1] * c[k] + g[0] * g[2]
            x = h[k] = g[3] * c[k].tanh()
            gates.append(g)
        kept["h"].append(h.clone())
        kept["c"].append(c.clone())
        kept["gates"].append(torch.stack(gates))
        kept["probabilities"].append(torch.softmax(model.out.weight.double() @ x + model.out.bias.double(), 0))
    found = {name: torch.stack(values).detach().numpy() for name, values in kept.items()}
    return {n: v if n == "probabilities" else np.moveaxis(v, 1, 0) for n, v in found.items()}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_trace_is_what_the_formula_says(layers):
    lm = untrained(SYMBOLS, 9, layers)
    text = quoted_prose(120)
    found, plain = trace(lm, text, ALL), plainly(lm.model, lm.vocab.encode(text))
    for name in ALL:
        got = getattr(found, name)
        assert got.dtype == np.float32
        assert got.shape == plain[name].shape, name
        np.testing.assert_allclose(got, plain[name], atol=2e-6, err_msg=name)
    p, ids = plain["probabilities"], lm.vocab.encode(text)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(1), rtol=1e-5)
    assert np.isnan(found.surprise[0])
    np.testing.assert_allclose(found.surprise[1:], -np.log(p[np.arange(119), ids[1:]]), rtol=1e-5)
    np.testing.assert_allclose(found.top_p, -np.sort(-p, 1)[:, :5], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(p, found.top, 1), found.top_p, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: untrained(SYMBOLS), lambda: with_quote_cell(SYMBOLS, 1, 5)])
def test_many_streams_are_one_stream(make):
    """Also for a model with a cell that never forgets, whose streams have no way to settle by themselves."""
    lm, text = make(), quoted_prose(9 * 1024 + 17)
    found = trace(lm, text, ALL)
    ids = torch.from_numpy(lm.vocab.encode(text).astype(np.int64))[:, None]
    with torch.no_grad():
        out, _, cells, gates = lm.model.rnn(ids, return_cell_states=True, return_gates=True)
        p = torch.softmax(lm.model.out(out[:, 0]), -1).numpy()
    near = 2e-4  # readings have met where h and tanh(c) differ by 1e-4
    np.testing.assert_allclose(found.probabilities, p, atol=near)
    np.testing.assert_allclose(found.h[-1], out[:, 0].numpy(), atol=near)
    for k in range(2):
        np.testing.assert_allclose(np.tanh(found.c[k]), np.tanh(cells[k][:, 0].numpy()), atol=near)
        np.testing.assert_allclose(found.gates[k].reshape(len(text), -1), gates[k][:, 0].numpy(), atol=near)
    np.testing.assert_allclose(
        found.c[:, :1024], torch.stack(cells)[:, :1024, 0].numpy(), atol=1e-5
    )  # the first stream


def test_pieces_follow_one_another():
    lm, text = untrained(SYMBOLS), quoted_prose(7000)
    whole, parts = trace(lm, text), list(pieces(lm, text, size=3000))
    assert [len(part) for part in parts][:2] == [3000 - 3000 % 2, 3000 - 3000 % 2]
    for name in ("ids", "top", "top_p", "entropy", "surprise"):
        np.testing.assert_allclose(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name), atol=2e-4)
    for name, seen in (("h", np.asarray), ("c", np.tanh), ("gates", np.asarray)):
        joined = np.concatenate([getattr(p, name) for p in parts], 1)
        np.testing.assert_allclose(seen(joined), seen(getattr(whole, name)), atol=2e-4)


def test_what_is_kept_and_how():
    lm, text = untrained(SYMBOLS, 8, 1), quoted_prose(50)
    found = trace(lm, text, keep=("c",), dtype=np.float16)
    assert (found.h, found.gates, found.probabilities) == (None, None, None)
    assert found.c.dtype == np.float16
    assert len(found) == 50
    assert trace(lm, text, keep=()).c is None
    with pytest.raises(CharLMError, match=r"keep names 'cells', expected any of h, c, gates, probabilities"):
        trace(lm, text, keep=("c", "cells"))
    with pytest.raises(CharLMError, match="empty"):
        trace(lm, "")
    with pytest.raises(CharLMError, match="never saw"):
        trace(lm, "a\u2603")


def test_fewer_symbols_than_predictions():
    lm = untrained('ab"', 4, 1)
    found = trace(lm, "ab" * 10)
    assert found.top.shape == (20, 3)
    np.testing.assert_allclose(found.top_p.sum(1), 1, rtol=1e-6)


def test_a_model_in_training_mode_stays_in_it():
    lm = untrained(SYMBOLS)
    lm.model.train()
    trace(lm, quoted_prose(50))
    assert lm.model.training


_MEMORY = """
import resource, sys
sys.path.insert(0, {tests!r})
from planted import quoted_prose, untrained
from fastlstm.charlm import pieces
text = quoted_prose(5000) * 20
lm = untrained("".join(sorted(set(text))), 64, 2)
for k, piece in enumerate(pieces(lm, text, size=5000)):
    if k in (2, 19):
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_pieces_take_no_more_memory_for_a_longer_text():
    code = _MEMORY.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    early, late = map(int, done.stdout.split())
    assert (late - early) / 1024 < 50  # MB; the 85,000 characters between them take 270 in a whole trace
