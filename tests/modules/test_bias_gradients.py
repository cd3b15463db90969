"""The gradients of b_ih and b_hh are two tensors, on every route: what changes one in place must not change the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import fastlstm
from fastlstm.backends import native
from tests.modules.pairs import leaves

_NATIVE = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}]


@contextmanager
def _op() -> Iterator[None]:
    """A mode that could observe the fused route, so that the op is called through torch's dispatcher."""
    with torch.device("cpu"):
        yield


ROUTES = {
    "as usual": nullcontext,
    "op": _op,
    "torch": lambda: fastlstm.backend("torch"),
    "reference": lambda: fastlstm.backend("reference"),
    "cpu": lambda: fastlstm.backend("cpu"),
}


def _grads_with_hooks_in_place(module: nn.Module, call: Callable[[], object], **options: bool) -> dict[str, Tensor]:
    """Gradients where a hook halves each of them in place, in the order in which they come."""
    parameters = dict(module.named_parameters())
    handles = [p.register_hook(lambda grad: grad.mul_(0.5)) for p in parameters.values()]
    sum(v.square().sum() for v in leaves(call())).backward(**options)
    for handle in handles:
        handle.remove()
    return {name: p.grad.detach() for name, p in parameters.items()}


def _assert_apart(grads: tuple[Tensor, ...]) -> None:
    assert len({g.untyped_storage().data_ptr() for g in grads}) == len(grads)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("route", [pytest.param(name, marks=_NATIVE if name == "cpu" else ()) for name in ROUTES])
def test_hooks_in_place_act_once(route: str, options: dict, packed: bool) -> None:
    torch_lstm = nn.LSTM(3, 5, dtype=torch.float64, **options)
    lstm = fastlstm.LSTM.from_torch(torch_lstm)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    x = rnn.pack_padded_sequence(x, [6, 4, 4, 1]) if packed else x
    expected = _grads_with_hooks_in_place(torch_lstm, lambda: torch_lstm(x))
    lstm.zero_grad()
    with ROUTES[route]():
        actual = _grads_with_hooks_in_place(lstm, lambda: lstm(x))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("how", ["create_graph", "recompute", "reset", "checkpoint", "float32", "bfloat16"])
def test_both_gradients_have_their_own_memory(how: str) -> None:
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(how, torch.float64)
    lstm = fastlstm.LSTM(3, 5, 2, dtype=dtype, recompute=how == "recompute")
    x = torch.randn(6, 4, 3, dtype=dtype)
    reset = torch.rand(6, 4) < 0.5 if how == "reset" else None
    if how == "checkpoint":
        out = torch.utils.checkpoint.checkpoint(lambda x: lstm(x)[0], x, use_reentrant=False)
    else:
        out = lstm(x, reset=reset)[0]
    _assert_apart(torch.autograd.grad(out.square().sum(), list(lstm.parameters()), create_graph=how == "create_graph"))


@pytest.mark.parametrize("embedding", [None, 4])
@pytest.mark.parametrize("route", ["as usual", "op"])
def test_both_gradients_have_their_own_memory_behind_a_table(route: str, embedding: int | None) -> None:
    model, ids = fastlstm.TokenLSTM(7, embedding, 5, num_layers=2), torch.randint(7, (6, 4))
    with ROUTES[route]():
        _assert_apart(torch.autograd.grad(model(ids)[0].square().sum(), list(model.parameters())))


def test_gradients_of_torch_func_have_their_own_memory() -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(6, 4, 3)
    weights = {name: p.detach() for name, p in lstm.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(lstm, weights, (x,))[0].square().sum()

    _assert_apart(tuple(torch.func.grad(loss)(weights).values()))


def test_hooks_in_place_act_once_in_a_compiled_step() -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.randn(6, 4, 3)
    expected = _grads_with_hooks_in_place(lstm, lambda: lstm(x))
    lstm.zero_grad()
    compiled = torch.compile(lstm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(_grads_with_hooks_in_place(lstm, lambda: compiled(x)), expected)
