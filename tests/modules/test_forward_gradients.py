"""Forward-mode gradients in float32 (where torch's own CPU LSTM raises), beside those of nn.LSTM in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.nn.utils import rnn

import fastlstm
from tests.modules.pairs import leaves

OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"proj_size": 2, "num_layers": 2},
    {"bias": False, "batch_first": True},
]
T, B, I, H = 4, 3, 2, 3


def _pair(**options: object) -> tuple[nn.LSTM, fastlstm.LSTM]:
    """In float64 and float32, with the same numbers."""
    exact = nn.LSTM(I, H, **options)
    return exact.double(), fastlstm.LSTM.from_torch(nn.LSTM(I, H, **options)).requires_grad_(False)


def _same_numbers(exact: nn.LSTM, lstm: fastlstm.LSTM) -> None:
    with torch.no_grad():
        for a, b in zip(exact.parameters(), lstm.parameters(), strict=True):
            a.copy_(b)
    exact.requires_grad_(False)


def _check(actual: object, expected: object) -> None:
    actual, expected = leaves(actual), leaves(expected)
    assert all(v.dtype == torch.float32 for v in actual)
    torch.testing.assert_close([v.double() for v in actual], expected, rtol=1e-4, atol=1e-5)


def _loss(lstm: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: sum(v.square().sum() for v in leaves(lstm(x)))


@pytest.fixture(params=OPTIONS, ids=str)
def both(request: pytest.FixtureRequest) -> tuple[nn.LSTM, fastlstm.LSTM]:
    exact, lstm = _pair(**request.param)
    _same_numbers(exact, lstm)
    return exact, lstm


def _input() -> Tensor:
    return torch.randn(T, B, I)


@pytest.mark.parametrize("packed", [False, True])
def test_jvp_of_input_state_and_weights(both: tuple, packed: bool) -> None:
    exact, lstm = both
    shape = (B, T, I) if lstm.batch_first else (T, B, I)
    n, P = lstm.num_layers * (1 + lstm.bidirectional), lstm.proj_size or H
    state = (torch.randn(n, B, P), torch.randn(n, B, H))
    primals = (torch.randn(shape), state, {name: p.detach() for name, p in lstm.named_parameters()})
    tangents = torch.utils._pytree.tree_map(torch.randn_like, primals)

    def call(module: nn.Module) -> Callable:
        def run(x: Tensor, hx: tuple, weights: dict) -> list[Tensor]:
            if packed:  # by hand: torch's packing has no forward-mode gradient
                x = rnn.PackedSequence(x.flatten(0, 1)[:7], torch.tensor([3, 2, 1, 1]))
            return leaves(functional_call(module, weights, (x, hx)))

        return run

    double = torch.utils._pytree.tree_map(torch.Tensor.double, (primals, tangents))
    differentiate = _by_dual_numbers if packed else jvp  # nn.LSTM takes no packed rows inside torch.func
    _check(differentiate(call(lstm), primals, tangents), differentiate(call(exact), *double))


def _by_dual_numbers(call: Callable, primals: tuple, tangents: tuple) -> list[Tensor]:
    with forward_ad.dual_level():
        outputs = call(*torch.utils._pytree.tree_map(forward_ad.make_dual, primals, tangents))
        return [part for v in outputs for part in forward_ad.unpack_dual(v)]


NESTINGS = {
    "jacfwd": lambda lstm, x: jacfwd(lambda x: lstm(x)[0])(x),
    "hessian": lambda lstm, x: hessian(_loss(lstm))(x),
    "jacrev of jacfwd": lambda lstm, x: jacrev(jacfwd(_loss(lstm)))(x),
    "jacfwd of jacfwd": lambda lstm, x: jacfwd(jacfwd(_loss(lstm)))(x),
    "jvp of grad": lambda lstm, x: jvp(grad(_loss(lstm)), (x,), (x.cos(),)),
    "grad of jvp": lambda lstm, x: grad(lambda x: jvp(_loss(lstm), (x,), (x.cos(),))[1])(x),
    "jvp of a pull-back": lambda lstm, x: _of_pull_back(lstm, x),
    "linearize": lambda lstm, x: linearize(lambda x: lstm(x)[0], x)[1](x.cos()),
    "vmap of jvp": lambda lstm, x: vmap(lambda v: jvp(lambda x: lstm(x)[0], (x,), (v,)))(torch.stack([x, x.cos()])),
    "functional.jvp": lambda lstm, x: torch.autograd.functional.jvp(_loss(lstm), x, x.cos())[1],
}


def _of_pull_back(lstm: nn.Module, x: Tensor) -> object:
    """Forward runs outside of jvp, its backward pass inside."""
    out, pull = vjp(lambda x: lstm(x)[0], x)
    return jvp(lambda head: pull(head)[0], (out.detach(),), (out.detach().sin(),))


@pytest.mark.parametrize("name", NESTINGS)
@pytest.mark.parametrize("options", [{}, {"proj_size": 2, "bidirectional": True}], ids=str)
def test_every_nesting_is_right(name: str, options: dict) -> None:
    exact, lstm = _pair(**options)
    _same_numbers(exact, lstm)
    x = _input()
    _check(NESTINGS[name](lstm, x), NESTINGS[name](exact, x.double()))


def test_nestings_that_nn_lstm_does_not_take() -> None:
    """torch cannot batch an operation of its own LSTM."""
    exact, lstm = _pair(num_layers=2)
    _same_numbers(exact, lstm)
    x = _input()
    how = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    _check(torch.autograd.functional.hessian(_loss(lstm), x, **how), hessian(_loss(exact))(x.double()))
    many, tangents = torch.stack([x, -x]), torch.stack([x.cos(), x])
    expected = [jvp(lambda v: exact(v)[0], (a.double(),), (b.double(),)) for a, b in zip(many, tangents, strict=True)]
    _check(jvp(vmap(lambda v: lstm(v)[0]), (many,), (tangents,)), [torch.stack(v) for v in zip(*expected, strict=True)])


@pytest.mark.parametrize("shape", [(1, 1, I), (T, B, I), (T, I)], ids=str)
@pytest.mark.parametrize("gradients", [False, True])
def test_dual_numbers(shape: tuple[int, ...], gradients: bool) -> None:
    """As torch.autograd.forward_ad makes them, also without gradients and for few rows; backward runs inside too."""
    exact, lstm = _pair(num_layers=2)
    _same_numbers(exact, lstm)
    x, v, by_module = torch.randn(shape), torch.randn(shape), []
    for module, own in ((lstm, torch.float32), (exact, torch.float64)):
        module.requires_grad_(gradients)
        with forward_ad.dual_level(), torch.set_grad_enabled(gradients):
            out = leaves(module(forward_ad.make_dual(x.to(own), v.to(own))))
            unpacked = [forward_ad.unpack_dual(o) for o in out]
            made = [part.detach() for pair in unpacked for part in pair]
            if gradients:
                (g,) = torch.autograd.grad(out[0].square().sum(), module.weight_hh_l0)
                made += [part.detach() for part in forward_ad.unpack_dual(g)]
        by_module.append(made)
    _check(*by_module)


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"return_cell_states": True}], ids=str)
def test_backward_with_dual_numbers_of_a_call_without(options: dict) -> None:
    """The tangent of a gradient, where forward ran before the level began: on the fused route and on the op."""
    exact, lstm = _pair(num_layers=2, proj_size=2)
    _same_numbers(exact, lstm)
    for name, value in options.items():
        setattr(lstm, name, value)
    x, by_module = _input(), []
    head, tangent = torch.randn(T, B, 2), torch.randn(T, B, 2)
    for module, own in ((lstm, torch.float32), (exact, torch.float64)):
        own_x = x.to(own).requires_grad_()
        out = module.requires_grad_()(own_x)[0]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(head.to(own), tangent.to(own))
            grads = torch.autograd.grad(out, [own_x, *module.parameters()], dual)
            by_module.append([part for g in grads for part in forward_ad.unpack_dual(g)])
    _check(*by_module)


@pytest.mark.parametrize("name", [None, "cpu", "reference"])
def test_options_that_nn_lstm_lacks(name: str | None) -> None:
    """Resets and cell states; a requested backend has no say, as in a gradient of a gradient."""
    lstm = fastlstm.LSTM(I, H, 2, return_cell_states=True).double()
    x, v, reset = _input().double(), _input().double(), torch.rand(T, B) < 0.5
    with fastlstm.backend(name):
        _, tangents = jvp(lambda x: leaves(lstm(x, reset=reset)), (x,), (v,))
        assert "reference" in fastlstm.last_plan()
        step = 1e-6
        ahead, behind = (leaves(lstm(x + sign * step * v, reset=reset)) for sign in (1, -1))
    torch.testing.assert_close(tangents, [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)])


@pytest.mark.parametrize("embedding", [None, 4])
def test_a_token_lstm(embedding: int | None) -> None:
    """Of its weights; and the tangent of the gradient of its table."""
    model, ids = fastlstm.TokenLSTM(5, embedding, H).double(), torch.randint(5, (T, B))
    weights = {name: p.detach() for name, p in model.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in weights.items()}
    step = 1e-6

    def loss(weights: dict) -> Tensor:
        return functional_call(model, weights, (ids,))[0].square().sum()

    def moved(sign: int) -> dict:
        return {name: p + sign * step * tangents[name] for name, p in weights.items()}

    value, gradients = jvp(loss, (weights,), (tangents,))[1], jvp(grad(loss), (weights,), (tangents,))[1]
    torch.testing.assert_close(value, (loss(moved(1)) - loss(moved(-1))) / (2 * step), rtol=1e-5, atol=1e-7)
    ahead, behind = grad(loss)(moved(1)), grad(loss)(moved(-1))
    for name, made in gradients.items():
        torch.testing.assert_close(made, (ahead[name] - behind[name]) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["jvp of grad", "hessian"])
def test_compiled_gradients_are_those_of_eager_ones(name: str) -> None:
    lstm, x = fastlstm.LSTM(I, H), _input()
    compiled = torch.compile(lambda x: NESTINGS[name](lstm, x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), NESTINGS[name](lstm, x))


def test_sum_by_id_has_a_tangent() -> None:
    rows, v, ids = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 2, 2, 1, 0, 2])
    _, tangent = jvp(lambda rows: torch.ops.fastlstm.sum_by_id(rows, ids, 4), (rows,), (v,))
    torch.testing.assert_close(tangent, torch.ops.fastlstm.sum_by_id(v, ids, 4))


def test_explain_says_that_the_definition_runs() -> None:
    lstm, x = fastlstm.LSTM(I, H), _input()
    with forward_ad.dual_level():
        assert fastlstm.explain(lstm, x).startswith("runs on reference")
    assert not fastlstm.explain(lstm, x).startswith("runs on reference")
