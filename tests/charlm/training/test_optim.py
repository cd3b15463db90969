"""The flat optimiser against torch's own on the separate parameters."""

from __future__ import annotations

import math

import pytest
import torch

from fastlstm.charlm import config
from fastlstm.charlm.model import CharModel, initialise
from fastlstm.charlm.training.optim import FlatParameters, Optimiser, learning_rate


def steps(model, step, n=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        ids = torch.randint(7, (9, 3), generator=generator)
        scores, _ = model(ids)
        torch.nn.functional.cross_entropy(scores[:-1].flatten(0, 1), ids[1:].flatten()).mul(30).backward()
        step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def pair():
    torch.manual_seed(0)
    one = CharModel(7, 6, 2)
    initialise(one, 0.08)
    two = CharModel(7, 6, 2)
    two.load_state_dict(one.state_dict())
    return one, two


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("clip", [{"grad_clip": 0.02}, {"grad_clip": 0.0, "clip_norm": 0.5}])
def test_updates_are_those_of_torch_s_optimisers(name, clip):
    settings = config.make(optimizer=name, weight_decay=0.1 if name == "adamw" else 0.0, **clip)
    one, two = pair()
    optimiser = Optimiser(FlatParameters(one), settings)
    matrices = [p for p in two.parameters() if p.dim() >= 2]
    rest = [p for p in two.parameters() if p.dim() < 2]
    torch_optimiser = {
        "rmsprop": lambda: torch.optim.RMSprop(two.parameters(), alpha=0.95),
        "adam": lambda: torch.optim.Adam(two.parameters()),
        "adamw": lambda: torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        ),
    }[name]()

    def step():
        if settings.grad_clip:
            torch.nn.utils.clip_grad_value_(two.parameters(), settings.grad_clip)
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(two.parameters(), settings.clip_norm)
        for group in torch_optimiser.param_groups:
            group["lr"] = 0.01
        torch_optimiser.step()
        torch_optimiser.zero_grad()

    for a, b in zip(steps(one, lambda: optimiser.step(0.01)), steps(two, step), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_parameters_stay_the_modules_own():
    one, _ = pair()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    flat = FlatParameters(one)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    with torch.no_grad():
        flat.vector.zero_()
    assert all(not value.any() for value in one.state_dict().values())


def test_initial_weights_are_char_rnns():
    model, _ = pair()
    for name, value in model.rnn.named_parameters():
        if ".bias_ih" in name:
            assert (value[6:12] == 1).all()
            value = torch.cat([value[:6], value[12:]])
        assert value.abs().max() <= 0.08
        assert value.abs().max() > 0.04


def test_the_learning_rate_decays_as_char_rnns():
    """Half-way through training char-rnn multiplies by 0.97 at the end of every epoch from the tenth on."""
    settings = config.make()
    rates = [learning_rate(settings, 0, epoch, 0.0) for epoch in range(14)]
    expected = 2e-3
    for epoch, rate in enumerate(rates):
        if epoch >= 10:
            expected *= 0.97
        assert rate == pytest.approx(expected)


def test_cosine_constant_and_torch_rnn_schedules():
    cosine = config.make(schedule="cosine", warmup=10, learning_rate=1.0)
    assert learning_rate(cosine, 0, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(cosine, 50, 0, 0.5) == pytest.approx(0.505)
    assert learning_rate(cosine, 99, 0, 1.0) == pytest.approx(0.01)
    assert math.isclose(learning_rate(config.make(schedule="constant"), 5, 40, 0.9), 2e-3)
    halves = config.make("torch-rnn")
    assert [learning_rate(halves, 0, epoch, 0) / 2e-3 for epoch in (4, 5, 9, 10, 15)] == [1, 0.5, 0.5, 0.25, 0.125]
