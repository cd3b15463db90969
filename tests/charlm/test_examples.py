"""The examples do what they say; the two in numpy are oracles for everything else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.charlm import config
from fastlstm.charlm.data.corpus import CorpusOptions, load
from fastlstm.charlm.training.distributed import Ranks
from fastlstm.charlm.training.progress import Reporter
from fastlstm.charlm.training.trainer import Trainer
from tests.charlm.babbling import SMALL, babble

FOLDER = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_min_char_rnn_is_a_hundred_lines():
    source = (FOLDER / "min_char_rnn.py").read_text()
    assert len(source.splitlines()) <= 100
    assert "torch" not in source


def test_min_char_rnn_gradients_are_right():
    assert example("min_char_rnn").check(np.random.default_rng(1)) < 1e-6


def test_min_char_rnn_computes_what_torchs_rnn_does():
    """Loss and gradients against nn.RNN in float64."""
    module, rng = example("min_char_rnn"), np.random.default_rng(2)
    V, H, T = 7, 9, 6
    p = {name: value * 30 for name, value in module.make(V, H, rng).items()}
    h, x, y = rng.standard_normal(H), rng.integers(V, size=T), rng.integers(V, size=T)
    loss, d, last = module.loss_and_gradients(p, h, x, y)
    rnn, out = nn.RNN(V, H).double(), nn.Linear(H, V).double()
    with torch.no_grad():
        for name, value in (("weight_ih_l0", "Wxh"), ("weight_hh_l0", "Whh"), ("bias_ih_l0", "bh")):
            getattr(rnn, name).copy_(torch.from_numpy(p[value]))
        rnn.bias_hh_l0.zero_()
        out.weight.copy_(torch.from_numpy(p["Why"]))
        out.bias.copy_(torch.from_numpy(p["by"]))
    states, h_n = rnn(nn.functional.one_hot(torch.from_numpy(x), V).double(), torch.from_numpy(h)[None])
    torch_loss = nn.functional.cross_entropy(out(states), torch.from_numpy(y), reduction="sum")
    torch_loss.backward()
    assert loss == pytest.approx(torch_loss.item(), rel=1e-12)
    np.testing.assert_allclose(last, h_n[0].detach().numpy(), rtol=1e-12)
    for value, name in (("Wxh", "weight_ih_l0"), ("Whh", "weight_hh_l0"), ("bh", "bias_ih_l0")):
        np.testing.assert_allclose(d[value], getattr(rnn, name).grad.numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(d["Why"], out.weight.grad.numpy(), rtol=1e-9)


def test_min_char_rnn_learns():
    shown = []
    text = babble(5000)
    _, chars, nats = example("min_char_rnn").train(text, 3001, np.random.default_rng(0), shown.append)
    assert nats < 2.2 < 3.0 < np.log(len(chars))
    assert len(shown) == 4


def test_lstm_numpy_gradients_are_right():
    assert example("lstm_numpy").check(np.random.default_rng(0)) < 1e-7


@pytest.mark.parametrize("backend", ["reference", "cpu", "torch"])
def test_lstm_numpy_computes_what_the_kernels_do(backend):
    """Outputs and every gradient, float64."""
    module, rng = example("lstm_numpy"), np.random.default_rng(3)
    T, B, I, H = 6, 5, 4, 7
    x, h0, c0 = (rng.standard_normal(shape) for shape in ((T, B, I), (B, H), (B, H)))
    dh, dh_n, dc_n = (rng.standard_normal(shape) for shape in ((T, B, H), (B, H), (B, H)))
    lstm = fastlstm.LSTM(I, H, dtype=torch.float64)
    W_ih, W_hh, b_ih, b_hh = (parameter.detach().numpy() for parameter in lstm.parameters())
    h, c, gates = module.forward(x, W_ih, W_hh, b_ih + b_hh, h0, c0)
    inputs = [torch.from_numpy(value).requires_grad_() for value in (x, h0, c0)]
    with fastlstm.backend(backend):
        out, (h_n, c_n) = lstm(inputs[0], (inputs[1][None], inputs[2][None]))
        torch.autograd.backward([out, h_n[0], c_n[0]], [torch.from_numpy(value) for value in (dh, dh_n, dc_n)])
    np.testing.assert_allclose(out.detach(), h, rtol=1e-11)
    np.testing.assert_allclose(c_n[0].detach(), c[-1], rtol=1e-11)
    dx, dW_ih, dW_hh, db, dh0, dc0 = module.backward(dh, dh_n, dc_n, x, W_ih, W_hh, h0, c0, h, c, gates)
    grads = [value.grad.numpy() for value in (*inputs, *lstm.parameters())]
    for one, other in zip(grads, (dx, dh0, dc0, dW_ih, dW_hh, db, db), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_against_torch_trains_both_to_the_same_state(tmp_path, capsys, monkeypatch):
    module = example("against_torch")
    monkeypatch.setattr(module, "TURN", 1)
    (tmp_path / "a.txt").write_text(babble(60_000))
    module.main(str(tmp_path / "a.txt"), 0.2)
    assert "times as fast" in capsys.readouterr().out
    text = load(str(tmp_path / "a.txt"), CorpusOptions())
    trainer = Trainer(config.make(**SMALL).settle(False), text, tmp_path, Ranks("cpu"), Reporter())
    torch_trainer = module.Plain(trainer)
    for _ in range(30):
        torch_trainer.step()
        trainer.step()
    for actual, expected in zip(trainer.state, torch_trainer.state, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["captions", "reverse"])
def test_other_examples_start(name):
    module = example(name)
    model = module.train(iterations=3, B=4)
    share, pairs = module.accuracy(model, number=20)
    assert 0 <= share < 0.5
    assert len(pairs) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["captions", "reverse"])
def test_other_examples_learn(name):
    torch.set_num_threads(2)
    module = example(name)
    share, pairs = module.accuracy(module.train())
    assert share >= 0.95, [pair for pair in pairs if pair[0] != pair[1]][:10]
