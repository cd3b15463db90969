"""fastlstm.decode of a model with int8 weights: the ids that the module itself would give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.backends import native

KERNELS = native.load().int8_isa_names() if native.unavailable() is None else []


def _model(embedding: int | None, layers: int, H: int, P: int, V: int = 29) -> tuple[fastlstm.TokenLSTM, nn.Linear]:
    torch.manual_seed(H)
    model = fastlstm.quantize(fastlstm.TokenLSTM(V, embedding, H, layers, proj_size=P).eval())
    out = nn.Linear(P or H, V)
    nn.init.normal_(out.weight, std=2.0)
    return model, out


def _greedy(model: fastlstm.TokenLSTM, out: nn.Linear, prime: list[int], n: int) -> torch.Tensor:
    """The ids with the largest score, one call of the module after another."""
    with torch.no_grad():
        h, state = model(torch.tensor(prime))
        ids = []
        for _ in range(n):
            ids.append(out(h[-1:]).argmax(1))
            h, state = model(ids[-1], state)
    return torch.cat(ids)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("sizes", [(None, 1, 17, 0), (8, 2, 33, 0), (5, 3, 40, 7)], ids=str)
def test_the_largest_scores_are_those_of_the_module(sizes: tuple, kernels: str) -> None:
    model, out = _model(*sizes)
    isa = native.load().int8_isa()
    native.load().set_int8_isa(kernels)
    try:
        ids, _, _ = fastlstm.decode(model, out.weight, out.bias, [3, 1, 4], 40, temperature=0)
        assert kernels in fastlstm.last_plan()
    finally:
        native.load().set_int8_isa(isa)
    assert torch.equal(ids[:, 0], _greedy(model, out, [3, 1, 4], 40))


@pytest.mark.parametrize("num", [1, 3, 40])
def test_streams_threads_and_calls_change_no_id(num: int) -> None:
    model, out = _model(8, 2, 33, 0)
    threads = torch.get_num_threads()
    drawn = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            drawn.append(fastlstm.decode(model, out.weight, out.bias, [0], 30, num=num, seed=5).ids)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    alone = fastlstm.decode(model, out.weight, out.bias, [0], 30, num=1, seed=5).ids
    assert torch.equal(drawn[0][:, :1], alone)


def test_the_definition_draws_the_same() -> None:
    model, out = _model(8, 2, 33, 5)
    expected = fastlstm.decode(model, out.weight, out.bias, [0, 2], 12, num=4, seed=1, log_probs=True)
    with fastlstm.backend("reference"):
        plain = fastlstm.decode(model, out.weight, out.bias, [0, 2], 12, num=4, seed=1, log_probs=True)
    assert torch.equal(plain.ids, expected.ids)
    torch.testing.assert_close(plain.log_probs, expected.log_probs, rtol=0, atol=0.02)
    torch.testing.assert_close(plain.state, expected.state, rtol=0, atol=0.02)


def test_another_type_of_weights_is_refused() -> None:
    model, out = _model(None, 1, 17, 0)
    with pytest.raises(ValueError, match=r"dtype is torch.bfloat16, expected None: the model's weights are int8"):
        fastlstm.decode(model, out.weight, out.bias, [0], 3, dtype=torch.bfloat16)
