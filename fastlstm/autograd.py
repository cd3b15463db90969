"""Gradients of the op: the autograd Functions that are registered as its own Autograd implementation.

`Forward` calls the op below autograd, and in backward `lstm_backward` and the products of `fastlstm.gradients`.
`Backward` makes `lstm_backward` itself differentiable: its gradient is that of the definition (`fastlstm.reference`),
run again from the inputs, so second derivatives are right with every backend and as slow as the definition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from fastlstm import dispatch, gradients, reference
from fastlstm.products import unrecorded


def _look_through(*args: object) -> bool:
    return any(isinstance(v, Tensor) and v.requires_grad for v in args)


any_grad = getattr(torch._C, "_any_requires_grad", _look_through)  # torch before 2.5 has no quick one


def register(library: torch.library.Library) -> None:
    """Make the Functions the Autograd implementations of the ops; they are skipped where nothing requires grad.

    They are "single level" because torch.func has chosen the level to work on before an op's Autograd implementation
    runs; autograd.Function would hand the call back to it.
    """

    def implement(name: str, function: type[_SingleLevelFunction]) -> None:
        op = getattr(torch.ops.fastlstm, name).default

        def call(keyset: torch._C.DispatchKeySet, *args: object) -> object:
            if not (torch.is_grad_enabled() and any_grad(*args)):
                return _below(op, keyset, args)
            if torch._C._functorch.peek_interpreter_stack() is None:
                return function.apply(keyset, *args)
            from torch._functorch.utils import enable_single_level_autograd_function

            with enable_single_level_autograd_function():
                return function.apply(keyset, *args)

        library.impl(name, call, "Autograd", with_keyset=True)

    implement("lstm_forward", Forward)
    implement("lstm_backward", Backward)
    implement("sum_by_id", SumById)


def _below(op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, args: tuple) -> object:
    """Run the op underneath autograd (of this level: in torch.func another may lie below)."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _below_recording(op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, args: tuple) -> object:
    """`_below` from within a Function, which switches gradients off; an outer level of torch.func needs them on."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return _below(op, keyset, args)
    with torch.enable_grad():
        return _below(op, keyset, args)


class Forward(_SingleLevelFunction):
    """`lstm_forward` with its gradients. With save=0 nothing is kept and backward runs forward once more.

    keyset: of the op's call, or what runs it, if it was called around torch's dispatcher.
    """

    @staticmethod
    def forward(ctx, keyset: torch._C.DispatchKeySet | Callable, *inputs: object) -> tuple[Tensor, ...]:
        if callable(keyset):
            h, c, gates, h_n, c_n = keyset(*inputs)
        else:
            h, c, gates, h_n, c_n = _below_recording(torch.ops.fastlstm.lstm_forward.default, keyset, inputs)
        *tensors, ctx.reverse, ctx.save = inputs
        ctx.forced = dispatch.forced()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*((gates,) if ctx.save else (gates, c)))
        ctx.save_for_backward(*tensors, h, c, gates)
        return h, c, gates, h_n, c_n

    @staticmethod
    def backward(ctx, dh, dc, _, dh_n, dc_n) -> tuple[Tensor | None, ...]:
        *tensors, h, c, gates = saved = ctx.saved_tensors
        inputs, grads, wanted = (*tensors, ctx.reverse, ctx.save), (dh, dc, dh_n, dc_n), ctx.needs_input_grad[1:7]
        with dispatch.again(ctx.forced):
            if ctx.save == 0:
                inputs = (*tensors, ctx.reverse, 1)
                h, c, gates, _, _ = torch.ops.fastlstm.lstm_forward(*inputs)
            if unrecorded(*grads, *saved):
                found = dispatch.gradients(wanted, grads, inputs, (h, c, gates))
                if found is not None:
                    return None, *found, None, None, None, None, None
            dxg, d_hr, dh0, dc0 = torch.ops.fastlstm.lstm_backward(*grads, *inputs, h, c, gates)
        found = gradients.of_weights(wanted, dxg, d_hr, inputs, h, c, gates)
        return None, *found, dh0, dc0, None, None, None, None, None


class Backward(_SingleLevelFunction):
    """`lstm_backward` with its gradients, with respect to incoming gradients and inputs.

    h, c and gates get none: they depend on the inputs alone, and that dependence is in the gradients of the inputs.
    """

    @staticmethod
    def forward(ctx, keyset: torch._C.DispatchKeySet, *args: object) -> tuple[Tensor, ...]:
        found = _below_recording(torch.ops.fastlstm.lstm_backward.default, keyset, args)
        *tensors, ctx.reverse, _, _, _, _ = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return found

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        wanted = [k for k in range(len(saved)) if ctx.needs_input_grad[k + 1]]
        given = [k for k, g in enumerate(grads) if g is not None]

        def again(*values: Tensor) -> tuple[Tensor, ...]:
            args = list(saved)
            for k, value in zip(wanted, values, strict=True):
                args[k] = value
            inputs = (*args[4:], ctx.reverse, 1)
            h, c, gates, _, _ = reference.forward(*inputs)
            found = reference.backward(*args[:4], *inputs, h, c, gates)
            return tuple(found[k] for k in given)

        found = [None] * (len(ctx.needs_input_grad) - 1)
        if given:
            _, pull = torch.func.vjp(again, *(saved[k] for k in wanted))
            for k, grad in zip(wanted, pull(tuple(grads[k] for k in given)), strict=True):
                found[k] = grad
        return None, *found


class SumById(_SingleLevelFunction):
    """`sum_by_id`: the gradient of a row is that of the sum it went into."""

    @staticmethod
    def forward(ctx, keyset: torch._C.DispatchKeySet, rows: Tensor, ids: Tensor, V: int) -> Tensor:
        ctx.save_for_backward(ids)
        return _below_recording(torch.ops.fastlstm.sum_by_id.default, keyset, (rows, ids, V))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None, None]:
        return None, grad[ctx.saved_tensors[0]], None, None
