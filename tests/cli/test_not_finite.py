"""A model whose weights hold NaN, or are too large to predict with: every command says so in one line."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastlstm.charlm import CharLM, CharLMError, find_cells, trace
from fastlstm.charlm.analysis import excerpt
from fastlstm.charlm.page.visualize import page

COMMANDS = {
    "sample": [],
    "sample --num": ["--num", "2"],
    "score": ["input.txt"],
    "evaluate": ["input.txt"],
    "cells": ["input.txt", "--length", "900"],
    "visualize": ["input.txt", "--length", "100"],
}


def spoil(value):
    """Put a value into a weight of the run's best checkpoint."""
    path = "run/best.safetensors"
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(path)
    tensors["rnn.lstm.weight_hh_l1"][3, 2] = value
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(("value", "word"), [(torch.nan, "NaN"), (torch.inf, "infinite numbers")])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_of_nan_is_one_line(run, model, command, value, word):
    spoil(value)
    code, _, err = run(command.split()[0], model, *COMMANDS[command])
    assert code == 2
    assert err.startswith(f"error: the weights of run/best.safetensors hold {word}: 1 of 576 in rnn.lstm.weight_hh_l1;")
    assert err.count("\n") == 1


def test_inspect_shows_where_the_nan_is(run, model):
    spoil(torch.nan)
    code, out, _ = run("inspect", model)
    assert code == 0
    assert " nan" in out


USES = {
    "sample": lambda lm, text: lm.sample(length=30),
    "score": lambda lm, text: lm.score([text]),
    "evaluate": lambda lm, text: lm.evaluate("input.txt"),
    "trace": lambda lm, text: trace(lm, text),
    "cells": lambda lm, text: find_cells(lm, text),
    "page": lambda lm, text: page(lm, excerpt.of_text(lm, text[:100])),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("value", "message"), [(torch.nan, "hold NaN"), (3e38, "its weights are too large")])
def test_a_model_in_memory_is_found_out_by_its_predictions(model, text, use, value, message):
    lm = CharLM.load(model)
    with torch.no_grad():
        lm.model.out.weight[:2] = value
        lm.model.out.bias[:2] = value
    with pytest.raises(CharLMError, match=message):
        USES[use](lm, text.read_text()[:600])
