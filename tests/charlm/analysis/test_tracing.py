"""The numbers inside a model: traces equal one plain call of the model, in pieces or whole, whatever the length."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from fastlstm.charlm import CharLM, CharLMError, Trace, pieces, trace
from fastlstm.charlm.analysis.tracing import STEPS_PER_CALL, nats
from fastlstm.charlm.model import CharModel
from fastlstm.testing.accuracy import check
from tests.charlm.planted import quoted_prose, untrained, with_quote_cell

SYMBOLS = "".join(sorted(set(quoted_prose(5000))))
ALL = ("h", "c", "gates", "probabilities")


def plainly(model: CharModel, ids: np.ndarray, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One step after another by torch's own operations and formula, everything in one type."""
    L, H = model.rnn.num_layers, model.out.in_features
    h, c = (torch.zeros(L, H, dtype=dtype) for _ in range(2))
    weights = {name: value.detach().to(dtype) for name, value in model.rnn.lstm.state_dict().items()}
    out = {name: value.detach().to(dtype) for name, value in model.out.state_dict().items()}
    kept = {name: [] for name in (*ALL, "logs")}
    for one in ids:
        x = torch.nn.functional.one_hot(torch.tensor(int(one)), model.rnn.num_embeddings).to(dtype)
        gates = []
        for k in range(L):
            z = weights[f"weight_ih_l{k}"] @ x + weights[f"weight_hh_l{k}"] @ h[k]
            z = (z + weights[f"bias_ih_l{k}"] + weights[f"bias_hh_l{k}"]).view(4, H)
            g = torch.stack([z[0].sigmoid(), z[1].sigmoid(), z[2].tanh(), z[3].sigmoid()])
            c[k] = g[1] * c[k] + g[0] * g[2]
            x = h[k] = g[3] * c[k].tanh()
            gates.append(g)
        scores = out["weight"] @ x + out["bias"]
        for name, value in zip(kept, (h, c, torch.stack(gates), scores.softmax(0), scores.log_softmax(0)), strict=True):
            kept[name].append(value.clone())
    arrays = {name: torch.stack(values) for name, values in kept.items()}
    return {n: v.transpose(0, 1) if n in ("h", "c", "gates") else v for n, v in arrays.items()}


def by_torch(model: CharModel, ids: np.ndarray) -> dict[str, torch.Tensor]:
    """The same in float32 by nn.LSTM, layer upon layer; its gates and cell states, which it does not show, by the formula."""
    arrays, tokens = plainly(model, ids, torch.float32), torch.from_numpy(ids)
    x, weights = torch.nn.functional.one_hot(tokens, model.rnn.num_embeddings).float(), model.rnn.lstm.state_dict()
    with torch.no_grad():
        for k in range(model.rnn.num_layers):
            one = torch.nn.LSTM(x.shape[-1], model.out.in_features)
            one.load_state_dict({f"{name[:-1]}0": v for name, v in weights.items() if name.endswith(f"_l{k}")})
            x = arrays["h"][k] = one(x[:, None])[0][:, 0]
        scores = model.out(x)
    return arrays | {"probabilities": scores.softmax(1), "logs": scores.log_softmax(1)}


def check_trace(traced: Trace, model: CharModel, what: str = "") -> None:
    """Every array against the formula in float64, by the one rule of accuracy: at most twice torch's error in float32."""
    reference, torch_values = plainly(model, traced.ids, torch.float64), by_torch(model, traced.ids)
    ids, k = torch.from_numpy(traced.ids), traced.top.shape[1]
    for values in (reference, torch_values):
        logs = values.pop("logs")
        values["surprise"] = -logs[:-1].gather(1, ids[1:, None])[:, 0]
        values["entropy"] = -(logs * values["probabilities"]).sum(1)
        values["top_p"] = values["probabilities"].sort(1, descending=True).values[:, :k]
    assert np.isnan(traced.surprise[0])
    traced = replace(traced, surprise=traced.surprise[1:])
    for name in reference:
        actual = getattr(traced, name)
        assert actual.dtype == np.float32
        check(f"{what} {name}", torch.from_numpy(actual), reference[name], torch_values[name])
    check(
        f"{what} top",
        reference["probabilities"].gather(1, torch.from_numpy(traced.top)),
        reference["top_p"],
        torch_values["top_p"],
    )


MODELS = {
    "one layer": lambda: untrained(SYMBOLS, 9, 1),
    "two layers": lambda: untrained(SYMBOLS, 9, 2, scale=0.5),
    "three layers": lambda: untrained(SYMBOLS, 9, 3),
    "a cell that never forgets": lambda: with_quote_cell(SYMBOLS, 1, 5),
    "trained": lambda: CharLM.load("names"),
}


@pytest.mark.parametrize("model_name", MODELS)
def test_a_trace_follows_the_formula(model_name):
    """Over seams of batches, however long the model remembers."""
    lm = MODELS[model_name]()
    text = quoted_prose(STEPS_PER_CALL + 17)
    traced = trace(lm, "".join(c if c in lm.vocab else "\n" for c in text), ALL)
    check_trace(traced, lm.model, model_name)


@pytest.mark.parametrize("model_name", MODELS)
def test_pieces_joined_are_the_whole_trace(model_name):
    lm, text = MODELS[model_name](), quoted_prose(1100)
    text = "".join(c if c in lm.vocab else "\n" for c in text)
    whole, parts = trace(lm, text, ALL), list(pieces(lm, text, ALL, size=400))
    assert [len(part) for part in parts] == [400, 400, 300]
    joined = {
        item.name: np.concatenate([getattr(p, item.name) for p in parts], int(item.name in ("h", "c", "gates")))
        for item in fields(Trace)
    }
    check_trace(Trace(**joined), lm.model, model_name)
    np.testing.assert_array_equal(joined["ids"], whole.ids)
    np.testing.assert_array_equal(nats(lm, whole.ids), whole.surprise)


def test_keep_selects_arrays_and_their_type():
    lm, text = untrained(SYMBOLS, 8, 1), quoted_prose(50)
    traced = trace(lm, text, keep=("c",), dtype=np.float16)
    assert (traced.h, traced.gates, traced.probabilities) == (None, None, None)
    assert traced.c.dtype == np.float16
    assert len(traced) == 50
    assert trace(lm, text, keep=()).c is None
    with pytest.raises(CharLMError, match=r"keep names 'cells', expected any of h, c, gates, probabilities"):
        trace(lm, text, keep=("c", "cells"))
    with pytest.raises(CharLMError, match="empty"):
        trace(lm, "")
    with pytest.raises(CharLMError, match="never saw"):
        trace(lm, "a\u2603")


def test_there_are_no_more_predictions_than_symbols():
    lm = untrained('ab"', 4, 1)
    traced = trace(lm, "ab" * 10)
    assert traced.top.shape == (20, 3)
    np.testing.assert_allclose(traced.top_p.sum(1), 1, rtol=1e-6)


def test_a_model_in_training_mode_stays_in_it():
    lm = untrained(SYMBOLS)
    lm.model.train()
    trace(lm, quoted_prose(50))
    assert lm.model.training


_MEMORY = """
import resource
from tests.charlm.planted import quoted_prose, untrained
from fastlstm.charlm import pieces
text = quoted_prose(5000) * 20
lm = untrained("".join(sorted(set(text))), 64, 2)
for k, piece in enumerate(pieces(lm, text, size=5000)):
    if k in (2, 19):
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_pieces_take_no_more_memory_for_a_longer_text():
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
    }
    done = subprocess.run([sys.executable, "-c", _MEMORY], env=env, capture_output=True, text=True, check=True)
    early, late = map(int, done.stdout.split())
    assert (late - early) / 1024 < 50  # MB; the 85,000 characters between them take 270 in a whole trace
