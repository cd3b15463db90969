"""The options of a run: char-rnn's defaults, presets, and values that cannot be."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from fastlstm.charlm import CharLMError, config, train


def test_defaults_are_char_rnns():
    plain = config.to_json(config.make())
    expected = {
        "hidden_size": 128,
        "num_layers": 2,
        "embedding_dim": 0,
        "dropout": 0.0,
        "init_scale": 0.08,
        "optimizer": "rmsprop",
        "learning_rate": 2e-3,
        "decay_rate": 0.95,
        "learning_rate_decay": 0.97,
        "learning_rate_decay_after": 10,
        "grad_clip": 5.0,
        "seq_length": 50,
        "batch_size": 50,
        "val_frac": 0.05,
    }
    assert {name: plain[name] for name in expected} == expected
    assert config.make().settle(False).split == "streams"
    assert config.make().settle(True).split == config.make(lines=True).settle(False).split == "lines"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "--hidden-size is 0, expected 1 to"),
        ({"hidden_size": 1.5}, "--hidden-size is 1.5, expected int"),
        ({"dropout": 1.0}, "--dropout is 1.0, expected 0 to 0.99"),
        ({"dropout": float("nan")}, "--dropout is nan, expected"),
        ({"optimizer": "sgd"}, "--optimizer is 'sgd', expected rmsprop, adam, adamw"),
        ({"split": "thirds"}, "--split is 'thirds', expected streams, contiguous, lines"),
        ({"preset": "gpt"}, "no preset 'gpt'; there are char-rnn, torch-rnn, names"),
        ({"speed": 1}, "no training option 'speed'"),
        ({"bytes": True, "lines": True}, "--bytes and --lines do not go together"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_bad_options_are_refused(text, tmp_path, options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(CharLMError, match=re.escape(message)):
        train(str(text), tmp_path / "run", **options)


def test_presets_set_options_and_arguments_override_them():
    assert config.make("torch-rnn").embedding_dim == 64
    assert config.make("names", hidden_size=7).hidden_size == 7
    assert config.make("char-rnn") == config.make()


def test_numpy_s_numbers_are_numbers():
    """They are kept as Python's, so that a checkpoint can hold them."""
    made = config.make(seed=np.int64(7), hidden_size=np.uint8(12), dropout=np.float32(0.5))
    assert made == config.make(seed=7, hidden_size=12, dropout=0.5)
    assert json.loads(json.dumps(config.to_json(made)))["seed"] == 7
    with pytest.raises(CharLMError, match=r"--seed is 1.0, expected int"):
        config.make(seed=np.float64(1.0))
