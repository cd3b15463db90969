"""The op of a compiled graph on the CPU: opcheck, the same bits as the fused route, both derivatives, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm.backends import native
from fastlstm.modules.stack_op import StackInputs, stack_forward
from fastlstm.ops.cell import Stack

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="no _C")

V, H = 7, 5
OPTIONS = [
    {},
    {"num_layers": 2},
    {"num_layers": 2, "bidirectional": True, "proj_size": 3},
    {"bidirectional": True, "bias": False},
]
KINDS = ["dense", "state", "packed", "ids", "one-hot"]
stack_backward = torch.ops.fastlstm.stack_backward.default


def _inputs(options: dict, kind: str, dtype: torch.dtype = torch.float64, grad: bool = False) -> StackInputs:
    """The arguments of one call: T 4, B 3, I 3, H 5."""
    tokens, I = kind in ("ids", "one-hot"), V if kind == "one-hot" else 3
    lstm = fastlstm.LSTM(I, H, dtype=dtype, **options)
    stack = Stack.of(lstm)
    source = torch.randint(V, (4, 3)) if tokens else torch.randn(4, 3, I, dtype=dtype)
    batch_sizes = h0 = c0 = None
    if kind == "packed":
        source, batch_sizes = pack_padded_sequence(source, [4, 3, 1])[:2]
    if kind in ("packed", "state"):
        h0, c0 = (torch.randn(shape, dtype=dtype) for shape in stack.state_shapes(3))
    embedding = torch.randn(V, I, dtype=dtype) if kind == "ids" else None
    sizes = (stack.layers, stack.directions == 2, I, H, stack.proj_size, stack.bias)
    weights = [p.detach() for p in lstm.parameters()]
    inputs = StackInputs(source, h0, c0, embedding, weights, batch_sizes, V if tokens else 0, *sizes)
    if grad:
        for v in inputs.differentiable:
            if v is not None and v.is_floating_point():
                v.requires_grad_()
    return inputs


def _leaves(inputs: StackInputs) -> list[Tensor]:
    return [v for v in inputs.differentiable if v is not None and v.requires_grad]


def _heads(results: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(y.shape, dtype=y.dtype, generator=generator) for y in results]


def _slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("options", "kind", "keep"),
    [
        (OPTIONS[1], "dense", True),
        (OPTIONS[2], "packed", False),
        (OPTIONS[2], "ids", False),
        *(_slow(options, kind, keep) for options in OPTIONS[1:3] for kind in KINDS for keep in (False, True)),
    ],
)
def test_opcheck_of_both_passes(options: dict, kind: str, keep: bool) -> None:
    """Schema (no result is a view of another), fakes, autograd, and a traced training step with and without symbolic sizes."""
    opcheck(stack_forward, (*_inputs(options, kind, grad=True), keep))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck_of_backward(options: dict, kind: str) -> None:
    inputs = _inputs(options, kind)
    out, h_n, c_n, *kept = stack_forward(*inputs, True)
    wants = [v is not None and v.is_floating_point() for v in inputs.differentiable]
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")  # compiled: through stack_forward, above
    opcheck(stack_backward, (*_heads([out, h_n, c_n]), *inputs, out, kept, wants), test_utils=utils)


@pytest.mark.parametrize("wanted", ["all", "none of the first layer", "only x"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_bits_as_the_module_s_fused_route(options: dict, wanted: str) -> None:
    lstm, x = fastlstm.LSTM(3, H, **options), torch.randn(4, 3, 3)
    x.requires_grad_(wanted != "none of the first layer")
    for name, p in lstm.named_parameters():
        p.requires_grad_(wanted == "all" or (wanted != "only x" and "_l0" not in name))
    stack = Stack.of(lstm)
    sizes = (stack.layers, stack.directions == 2, 3, H, stack.proj_size, stack.bias)
    results = stack_forward(x, None, None, None, list(lstm.parameters()), None, 0, *sizes, False)
    out, (h_n, c_n) = lstm(x)
    assert all(map(torch.equal, results, (out, h_n, c_n)))
    leaves = [v for v in (x, *lstm.parameters()) if v.requires_grad]
    if not leaves:
        assert not any(y.requires_grad for y in results)
        return
    actual = torch.autograd.grad(results, leaves, _heads(results))
    expected = torch.autograd.grad((out, h_n, c_n), leaves, _heads(results))
    assert all(map(torch.equal, actual, expected))


def test_gradients_of_both_biases_are_two_tensors() -> None:
    inputs = _inputs({}, "dense", grad=True)
    made = torch.autograd.grad(stack_forward(*inputs, False)[0].sum(), _leaves(inputs))
    assert torch.equal(made[3], made[4])
    assert made[3].data_ptr() != made[4].data_ptr()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "state"),
        ({"bidirectional": True, "bias": False}, "ids"),
        *(_slow(options, kind) for options in OPTIONS[:3] for kind in KINDS),
    ],
)
def test_both_derivatives(options: dict, kind: str) -> None:
    inputs = _inputs(options, kind, grad=True)

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        rest = iter(leaves)
        values = [next(rest) if v is not None and v.requires_grad else v for v in inputs.differentiable]
        return tuple(stack_forward(*inputs.with_differentiable(values), False))

    assert torch.autograd.gradcheck(call, _leaves(inputs))
    assert torch.autograd.gradgradcheck(call, _leaves(inputs), fast_mode=True)


def test_torch_func_reaches_the_op() -> None:
    """A module that is compiled inside a transform takes the op of one layer; a graph that was made before is run as it is."""
    inputs = _inputs({"num_layers": 2}, "dense")

    def loss(x: Tensor) -> Tensor:
        return stack_forward(*inputs._replace(source=x), False)[0].square().sum()

    x = inputs.source
    expected = torch.autograd.functional.jacobian(loss, x)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    batch = torch.stack([x, 2 * x])
    expected = torch.stack([loss(x), loss(2 * x)])
    torch.testing.assert_close(torch.func.vmap(loss)(batch), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"source": torch.zeros(4, 3, 4)},
            r"source is float32 with shape \[4, 3, 4\] on cpu, expected float32 with shape \[4, 3, 3\] in memory",
        ),
        ({"source": torch.zeros(4, 3)}, "source has 2 dimensions, expected 3"),
        ({"source": torch.zeros(0, 3, 3)}, "at least one step"),
        (
            {"source": torch.zeros(4, 3, 3, device="meta")},
            r"a tensor with shape \[4, 3, 3\] is on meta, expected cpu as the others",
        ),
        ({"h0": torch.zeros(1, 2, 5), "c0": torch.zeros(1, 3, 5)}, "h0 is"),
        ({"h0": torch.zeros(1, 3, 5), "c0": None}, "c0 is NoneType"),
        ({"h0": torch.zeros(1, 3, 5), "c0": torch.zeros(1, 3, 5, dtype=torch.float64)}, "c0 is float64"),
        ({"hidden_size": 6}, r"weights\[0\] is"),
        ({"num_layers": 2}, "4 weights of torch.float32, expected 8"),
        ({"weights": []}, "0 weights"),
        ({"V": 3}, "source has 3 dimensions, expected 2"),
        ({"V": 3, "source": torch.full((4, 3), 3)}, "ids hold 3, expected 0 to 2"),
        ({"V": 4, "source": torch.zeros(4, 3, dtype=torch.int64)}, "expected input_size 3"),
        ({"batch_sizes": torch.tensor([3, 4]), "source": torch.zeros(7, 3)}, "sizes that fall"),
        ({"batch_sizes": torch.tensor([4, 3]), "source": torch.zeros(7, 3)}, "and h0 and c0"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_kernel_reads_it(change: dict, message: str) -> None:
    inputs = _inputs({}, "dense", torch.float32)._replace(**change)
    with pytest.raises((RuntimeError, IndexError), match=message):
        stack_forward(*inputs, False)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("d_out", torch.zeros(4, 3, 6, dtype=torch.float64), "d_out is"),
        ("dc_n", torch.zeros(1, 3, 5), "dc_n is float32"),
        ("out", torch.zeros(4, 3, 5), "out is float32"),
        ("kept", [], "kept holds 0 tensors, expected 2"),
        ("kept", [torch.zeros(4, 3, 5, dtype=torch.float64)] * 2, r"kept\[1\] is"),
        ("batch_sizes", torch.tensor([3, 4]), "source has 3 dimensions"),
        ("wants", [True] * 8, r"wants is \[True, .*, expected 8 values, false where an input is None"),
        ("wants", [True], r"wants is \[True\], expected 8 values"),
    ],
)
def test_backward_refuses_what_forward_did_not_keep(place: str, value: object, message: str) -> None:
    """Saved tensors may come back from a hook in another form."""
    inputs = _inputs({}, "dense")
    out, h_n, c_n, *kept = stack_forward(*inputs, True)
    names = ("d_out", "dh_n", "dc_n", *StackInputs._fields, "out", "kept", "wants")
    args = dict(
        zip(
            names, (*_heads([out, h_n, c_n]), *inputs, out, kept, [True, False, False, False, *[True] * 4]), strict=True
        )
    )
    with pytest.raises(RuntimeError, match=message):
        stack_backward(*(args | {place: value}).values())


def test_weights_of_any_strides_give_the_same() -> None:
    inputs = _inputs({}, "state")
    expected = stack_forward(*inputs, False)
    values = [v if v is None or v.dim() == 1 else v.mT.contiguous().mT for v in inputs.differentiable]
    strided = inputs.with_differentiable(values)
    assert not strided.source.is_contiguous()
    assert not strided.weights[1].is_contiguous()
    assert all(map(torch.equal, stack_forward(*strided, False), expected))


def test_another_backend_than_it_was_compiled_for_is_refused() -> None:
    inputs = _inputs({}, "dense")
    with fastlstm.backend("reference"), pytest.raises(fastlstm.BackendError, match="compiled for the backend 'cpu'"):
        stack_forward(*inputs, False)
