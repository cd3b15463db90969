"""The op of a compiled graph on the CPU: all layers and directions in one node, over the kernels of the fused route.

    stack_forward    output, h_n, c_n; with `keep` also what backward reads
    stack_backward   the gradients that are wanted, of every input, in one node

torch.compile's graph holds `stack_forward` without `keep`; where something requires grad, the op's Autograd implementation
asks for it. On the op of one layer (`fastlstm.ops.lstm`) a compiled training step wrote down the gradients at all
pre-activations and multiplied them by operations of torch, and Inductor compiled C++ for sums of biases and stacks of states.
`fastlstm.modules.route` decides when a compiled call comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm import dispatch
from fastlstm._torch_compat import (
    DispatchKeySet,
    SingleLevelFunction,
    any_requires_grad,
    describe_object,
    dynamo_skip,
    in_functorch,
    single_level_functions,
)
from fastlstm.backends.cpu import backend as cpu
from fastlstm.backends.cpu import function
from fastlstm.memory import plain_check, saved_whole
from fastlstm.modules.call import Call, Tokens, zero_state
from fastlstm.modules.checks import packed_sequences
from fastlstm.modules.layers import run_layers
from fastlstm.ops import flops, validation
from fastlstm.ops.autograd import below, below_recording
from fastlstm.ops.cell import Stack
from fastlstm.ops.gemm import REALS

_INPUTS = (
    "Tensor source, Tensor? h0, Tensor? c0, Tensor? embedding, Tensor[] weights, Tensor? batch_sizes, int V, "
    "int num_layers, bool bidirectional, int input_size, int hidden_size, int proj_size, bool bias"
)
_library = torch.library.Library("fastlstm", "FRAGMENT")
_library.define(f"stack_forward({_INPUTS}, bool keep) -> Tensor[]")
_library.define(
    f"stack_backward(Tensor? d_out, Tensor? dh_n, Tensor? dc_n, {_INPUTS}, Tensor out, Tensor[] kept, bool[] wants) "
    "-> Tensor[]"
)


class StackInputs(NamedTuple):
    """What both ops take.

    source: (T, B, I), packed (N, I); with V > 0 the ids, (T, B) or (N,). h0, c0: (layers · directions, B, ·), None for
    zero where the input is dense. embedding: (V, I), None for one-hot ids. weights: torch's flat list. The rest is as an
    LSTM module names it, so that `Stack.of` reads it.
    """

    source: Tensor
    h0: Tensor | None
    c0: Tensor | None
    embedding: Tensor | None
    weights: Sequence[Tensor]
    batch_sizes: Tensor | None
    V: int
    num_layers: int
    bidirectional: bool
    input_size: int
    hidden_size: int
    proj_size: int
    bias: bool

    @property
    def stack(self) -> Stack:
        return Stack.of(self, cached=True)

    @property
    def lead(self) -> torch.Size:
        """The dimensions that count rows: (T, B), packed (N,)."""
        return self.source.shape[: 2 if self.batch_sizes is None else 1]

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """What gets a gradient, in the order of `wants` and of the results of `stack_backward`."""
        return self.source, self.h0, self.c0, self.embedding, *self.weights

    def with_differentiable(self, values: Sequence[Tensor | None]) -> StackInputs:
        """The same with other tensors in the place of `differentiable`."""
        source, h0, c0, embedding, *weights = values
        return self._replace(source=source, h0=h0, c0=c0, embedding=embedding, weights=weights)


# ---- what runs ------------------------------------------------------------------------------------------------------


def _forward(*args: object) -> list[Tensor]:
    requested = dispatch.requested_backend()
    if requested not in (None, "cpu"):
        raise dispatch.BackendError(
            f"backend '{requested}' was asked for and cannot run this call: it was compiled for the backend 'cpu'; "
            f"call torch.compiler.reset() and compile again where '{requested}' is asked for"
        )
    call, inputs = _checked(StackInputs(*args[:-1]))
    dispatch.record_plan(cpu.describe(call.dtype))
    return _kept_in_order(call.stack, *function.forward(call, *inputs[:5], keep=args[-1]), args[-1])


def _backward(*args: object) -> list[Tensor]:
    grads, (out, kept, wants) = args[:3], args[-3:]
    _check_wants(StackInputs(*args[3:-3]), wants)
    call, inputs = _checked(StackInputs(*args[3:-3]))
    grads, (out, *kept) = _checked_saved(inputs, call, grads, [out, *kept])
    between, kept = _kept_by_direction(call.stack, out, kept)
    source, h0, c0, embedding, weights = inputs[:5]
    run = function._Backward(call, tuple(wants), grads, [source, *between], (h0, c0), embedding, weights, kept).run
    return [grad for want, grad in zip(wants, run(), strict=True) if want]


def _kept_in_order(
    stack: Stack, out: Tensor, h_n: Tensor, c_n: Tensor, between: list, kept: list, keep: bool
) -> list[Tensor]:
    """Output, states and, with `keep`, inputs of later layers, h of each direction where there are two, c, gates: each once."""
    if not keep:
        return [out, h_n, c_n]
    h, c, gates = zip(*kept, strict=True)
    return [out, h_n, c_n, *between, *(h if stack.directions == 2 else ()), *c, *gates]


def _kept_by_direction(stack: Stack, out: Tensor, kept: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs of later layers; then h, c and gates of each layer and direction in turn."""
    n, later = stack.layers * stack.directions, stack.layers - 1
    between, rest = kept[:later], kept[later:]
    h, rest = ([*between, out], rest) if stack.directions == 1 else (rest[:n], rest[n:])
    return between, [v for three in zip(h, rest[:n], rest[n:], strict=True) for v in three]


def _kept_shapes(inputs: StackInputs) -> Iterator[tuple[int, ...]]:
    """The shapes of what is kept, in the order of `_kept_in_order`."""
    stack, lead = inputs.stack, tuple(inputs.lead)
    n, H, P = stack.layers * stack.directions, stack.hidden_size, stack.P
    yield from [(*lead, P * stack.directions)] * (stack.layers - 1)
    yield from [(*lead, P)] * n * (stack.directions == 2)
    yield from [(*lead, H)] * n
    yield from [(*lead, 4 * H)] * n


# ---- checks: each argument is named here; the native module checks memory again ---------------------


def _checked(inputs: StackInputs) -> tuple[function.FusedCall, StackInputs]:
    """The call, and its inputs contiguous, the state given; raises RuntimeError naming what does not fit."""
    source, batch_sizes, packed = inputs.source, inputs.batch_sizes, inputs.batch_sizes is not None
    stack = inputs.stack
    shapes, dtype = stack.weight_shapes, inputs.weights[0].dtype if inputs.weights else None
    if dtype not in REALS or len(inputs.weights) != len(shapes):
        raise RuntimeError(
            f"stack_forward: there are {len(inputs.weights)} weights of {dtype}, expected {len(shapes)} of "
            "torch.float32 or torch.float64"
        )
    ids, dims = inputs.V > 0, (1 if packed else 2) + (inputs.V == 0)
    if source.dim() != dims:
        raise RuntimeError(f"stack_forward: source has {source.dim()} dimensions, expected {dims}")
    T, B = (batch_sizes.numel(), packed_sequences(source, batch_sizes)) if packed else source.shape[:2]
    if T == 0 or (packed and (B == 0 or inputs.h0 is None)):
        raise RuntimeError(
            "stack_forward: expected at least one step and, with batch_sizes, sizes that fall to at least 1 and sum to the "
            "rows of source, and h0 and c0"
        )
    h0, c0 = zero_state(stack, B, inputs.weights[0]) if inputs.h0 is None else (inputs.h0, inputs.c0)
    _expect("source", source, (*inputs.lead, *(() if ids else (stack.input_size,))), torch.int64 if ids else dtype)
    for name, value, shape in zip(("h0", "c0"), (h0, c0), stack.state_shapes(B), strict=True):
        _expect(name, value, shape, dtype)
    for k, (weight, shape) in enumerate(zip(inputs.weights, shapes, strict=True)):
        _expect(f"weights[{k}]", weight, shape, dtype)
    if inputs.embedding is not None:
        _expect("embedding", inputs.embedding, (inputs.V, stack.input_size), dtype)
    elif ids and stack.input_size != inputs.V:
        raise RuntimeError(
            f"stack_forward: V is {inputs.V} without an embedding, expected input_size {stack.input_size}"
        )
    values = (source, h0, c0, inputs.embedding, *inputs.weights)
    inputs = inputs.with_differentiable([None if v is None else v.contiguous() for v in values])
    inputs = inputs._replace(batch_sizes=batch_sizes.contiguous() if packed else None)
    threads = torch.get_num_threads()
    return function.FusedCall(stack, inputs.V, inputs.batch_sizes, T, B, dtype, threads, through_ops), inputs


def _checked_saved(
    inputs: StackInputs, call: function.FusedCall, grads: tuple, saved: list[Tensor]
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Incoming gradients and what forward kept, contiguous; raises as `_checked` does."""
    out_shape = (*inputs.lead, call.stack.P * call.stack.directions)
    shapes = [out_shape, *_kept_shapes(inputs)]
    if len(saved) != len(shapes):
        raise RuntimeError(f"stack_backward: kept holds {len(saved) - 1} tensors, expected {len(shapes) - 1}")
    for k, (value, shape) in enumerate(zip(saved, shapes, strict=True)):
        _expect(f"kept[{k - 1}]" if k else "out", value, shape, call.dtype)
    expected = (out_shape, *call.stack.state_shapes(call.B))
    for name, grad, shape in zip(("d_out", "dh_n", "dc_n"), grads, expected, strict=True):
        if grad is not None:
            _expect(name, grad, shape, call.dtype)
    return [None if g is None else g.contiguous() for g in grads], [v.contiguous() for v in saved]


def _check_wants(inputs: StackInputs, wants: Sequence[bool]) -> None:
    """Raise where a gradient is wanted of what was not given."""
    values = inputs.differentiable
    if len(wants) != len(values) or any(want and v is None for want, v in zip(wants, values, strict=False)):
        raise RuntimeError(
            f"stack_backward: wants is {list(wants)}, expected {len(values)} values, false where an input is None"
        )


def _expect(name: str, value: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if value is None or not plain_check()(value) or value.dtype != dtype or value.shape != shape:
        expected = f"{str(dtype).removeprefix('torch.')} with shape {list(shape)} in memory of the CPU"
        raise RuntimeError(f"fastlstm stack op: {name} is {describe_object(value)}, expected {expected}")


# ---- shapes for tracing ---------------------------------------------------------------------------------------------


def _fake_forward(*args: object) -> list[Tensor]:
    inputs = StackInputs(*args[:-1])
    _one_device("stack_forward", inputs)
    stack, new = inputs.stack, inputs.weights[0].new_empty
    B = inputs.source.shape[1] if inputs.h0 is None else inputs.h0.shape[1]
    shapes = [(*inputs.lead, stack.P * stack.directions), *stack.state_shapes(B)]
    return [new(shape) for shape in (*shapes, *(_kept_shapes(inputs) if args[-1] else ()))]


def _one_device(op: str, inputs: StackInputs, *others: Tensor | None) -> None:
    validation.on_one_device(op, inputs.batch_sizes, inputs.weights[0], *inputs.differentiable, *others)


def _fake_backward(*args: object) -> list[Tensor]:
    inputs, wants = StackInputs(*args[3:-3]), args[-1]
    _check_wants(inputs, wants)
    _one_device("stack_backward", inputs, *args[:3], args[-3], *args[-2])
    return [v.new_empty(v.shape) for v, want in zip(inputs.differentiable, wants, strict=True) if want]


# ---- gradients ------------------------------------------------------------------------------------------------------


class _Stack(SingleLevelFunction):
    """`stack_forward` with its gradients. The first three arguments are not differentiable."""

    @staticmethod
    def forward(ctx, keyset: DispatchKeySet, rest: tuple, batch_sizes: Tensor | None, *values: Tensor | None) -> tuple:
        args = (*values[:4], list(values[4:]), batch_sizes, *rest, True)
        out, h_n, c_n, *kept = below_recording(torch.ops.fastlstm.stack_forward.default, keyset, args)
        ctx.rest, ctx.count = rest, len(values)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(batch_sizes, *values, out, *kept)
        return out, h_n, c_n, *kept

    @staticmethod
    def backward(ctx, d_out: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: None) -> tuple:
        batch_sizes, *saved = saved_whole(ctx)
        values, (out, *kept) = saved[: ctx.count], saved[ctx.count :]
        grads, wants = (d_out, dh_n, dc_n), ctx.needs_input_grad[3:]
        made = iter(())
        if any(g is not None for g in grads):
            args = (*grads, *values[:4], values[4:], batch_sizes, *ctx.rest)
            if torch.is_grad_enabled():
                made = iter(_recorded_gradients(*args, wants))
            else:
                made = iter(torch.ops.fastlstm.stack_backward(*args, out, kept, wants))
        return None, None, None, *(next(made, None) if want else None for want in wants)


def _with_gradients(keyset: DispatchKeySet, *args: object) -> list[Tensor]:
    """The Autograd implementation of `stack_forward`."""
    inputs, keep = StackInputs(*args[:-1]), args[-1]
    if not (torch.is_grad_enabled() and any_requires_grad(*inputs.differentiable)):
        return below(torch.ops.fastlstm.stack_forward.default, keyset, args)
    args = (keyset, inputs[6:], inputs.batch_sizes, *inputs.differentiable)
    if in_functorch():
        with single_level_functions():
            results = _Stack.apply(*args)
    else:
        results = _Stack.apply(*args)
    return list(results if keep else results[:3])


def _backward_with_gradients(keyset: DispatchKeySet, *args: object) -> list[Tensor]:
    """The Autograd implementation of `stack_backward`: it is differentiated through the op of one layer."""
    read = (*args[:3], *StackInputs(*args[3:-3]).differentiable)
    if not (torch.is_grad_enabled() and any_requires_grad(*read)):
        return below(torch.ops.fastlstm.stack_backward.default, keyset, args)
    return _recorded_gradients(*args[:-3], args[-1])


def _recorded_gradients(*args: object) -> list[Tensor]:
    """The wanted gradients by operations that torch can differentiate again: forward once more, on the op of one layer."""
    grads, inputs, wants = args[:3], StackInputs(*args[3:-1]), args[-1]
    values = [v if v is None else v.view_as(v) for v in inputs.differentiable]  # what one is to another does not count
    sources = [k for k, want in enumerate(wants) if want]
    for k in sources:
        if not values[k].requires_grad:
            values[k].requires_grad_()
    outputs = _by_layers(inputs.with_differentiable(values))
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    heads, incoming = zip(*pairs, strict=True)
    made = torch.autograd.grad(heads, [values[k] for k in sources], incoming, create_graph=True, allow_unused=True)
    return [torch.zeros_like(values[k]) if g is None else g for k, g in zip(sources, made, strict=True)]


def _by_layers(inputs: StackInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Output, h_n and c_n by the op of one layer."""
    state = (inputs.h0, inputs.c0)
    if inputs.h0 is None:
        state = zero_state(inputs.stack, inputs.source.shape[1], inputs.weights[0])
    tokens = Tokens(inputs.V, inputs.embedding) if inputs.V else None
    return run_layers(Call(inputs.stack, inputs.source, tokens, inputs.batch_sizes, state, list(inputs.weights)))[:3]


def through_ops(
    fused: function.FusedCall, rows: Tensor, h0: Tensor, c0: Tensor, embedding: Tensor | None, *weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A fused call again on the op, which torch can differentiate as often as it likes."""
    tokens = Tokens(fused.V, embedding) if fused.V else None
    if rows.is_floating_point():
        rows = rows.to(fused.dtype)
    h0, c0, *weights = (v.to(fused.dtype) for v in (h0, c0, *weights))  # under autocast weights are float32
    call = Call(fused.stack, rows, tokens, fused.batch_sizes, (h0, c0), weights)
    with flops.counted_before():
        return run_layers(call)[:3]


# ---- torch.vmap -----------------------------------------------------------------------------------------------------


def _one_by_one(name: str) -> Callable:
    """The rule of an op: its calls one by one. (A vmapped module that is compiled comes to the op of one layer.)"""

    def rule(info, in_dims: tuple, *args: object) -> tuple[list[Tensor], list[int]]:
        op = getattr(torch.ops.fastlstm, name)
        calls = [op(*(_part(v, d, k) for v, d in zip(args, in_dims, strict=True))) for k in range(info.batch_size)]
        results = [torch.stack(same) for same in zip(*calls, strict=True)]
        return results, [0] * len(results)

    return rule


def _part(value: object, dim: object, k: int) -> object:
    if isinstance(dim, (list, tuple)):
        return [_part(v, d, k) for v, d in zip(value, dim, strict=True)]
    return value if dim is None else value.select(dim, k)


for _name, _run, _fake, _autograd in (
    ("stack_forward", _forward, _fake_forward, _with_gradients),
    ("stack_backward", _backward, _fake_backward, _backward_with_gradients),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    _library.impl(_name, _autograd, "Autograd", with_keyset=True)
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=_library)
    if hasattr(torch.library, "register_vmap"):  # torch 2.5 and later
        torch.library.register_vmap(f"fastlstm::{_name}", _one_by_one(_name), lib=_library)

stack_forward = torch.ops.fastlstm.stack_forward.default

dynamo_skip(__name__)
