"""Gradients of the op: the autograd Functions that are registered as its own Autograd implementation.

`Forward` calls the op below autograd, and in backward `lstm_backward` and the products of `fastlstm.ops.weight_gradients`.
`Backward` makes `lstm_backward` itself differentiable: its gradient is that of the definition (`fastlstm.ops.reference`),
run again from the inputs, so second derivatives are right with every backend and as slow as the definition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlstm import dispatch
from fastlstm._torch_compat import (
    DispatchKeySet,
    OpOverload,
    SingleLevelFunction,
    any_requires_grad,
    below_autograd,
    dynamo_skip,
    forward_gradients_are_on,
    in_functorch,
    is_recorded,
    keys_after_autograd,
    single_level_functions,
)
from fastlstm.memory import saved_whole
from fastlstm.ops import flops, reference, validation, weight_gradients
from fastlstm.ops.arguments import SAVE_ALL, SAVE_NOTHING, Grads, OpInputs, Saved
from fastlstm.ops.autocast import own_types


def register(library: torch.library.Library) -> None:
    """Make the Functions the Autograd implementations of the ops; they are skipped where nothing requires grad.

    Inside forward-mode differentiation (jvp, jacfwd, hessian) the definition runs instead: torch's operations have every
    derivative, in every nesting with torch.func and autograd.
    They are "single level" because torch.func has chosen the level to work on before an op's Autograd implementation
    runs; autograd.Function would hand the call back to it.
    """

    def implement(name: str, function: type[SingleLevelFunction], definition: Callable) -> None:
        op = getattr(torch.ops.fastlstm, name).default

        def call(keyset: DispatchKeySet, *args: object) -> object:
            flops.register_with_active_counters()
            if forward_gradients_are_on():
                dispatch.record_plan("reference: the definition, step by step, for forward-mode gradients")
                return definition(*args)
            if not (torch.is_grad_enabled() and any_requires_grad(*args)):
                return below(op, keyset, args)
            if not in_functorch():
                return function.apply(keyset, *args)
            with single_level_functions():
                return function.apply(keyset, *args)

        library.impl(name, call, "Autograd", with_keyset=True)

    implement("lstm_forward", Forward, reference.forward)
    implement("lstm_backward", Backward, reference.backward)
    implement("sum_by_id", SumById, reference.sum_by_id)


def below(op: OpOverload, keyset: DispatchKeySet, args: tuple) -> object:
    """Run the op underneath autograd (of this level: in torch.func another may lie below)."""
    with below_autograd():
        return op.redispatch(keys_after_autograd(keyset), *args)


def below_recording(op: OpOverload, keyset: DispatchKeySet, args: tuple) -> object:
    """`below` from within a Function, which switches gradients off; an outer level of torch.func needs them on."""
    if not in_functorch():
        return below(op, keyset, args)
    with torch.enable_grad():
        return below(op, keyset, args)


class Forward(SingleLevelFunction):
    """`lstm_forward` with its gradients. With SAVE_NOTHING backward runs forward once more.

    keyset: of the op's call, or what runs it, if it was called past torch's dispatcher.
    """

    @staticmethod
    def forward(ctx, keyset: DispatchKeySet | Callable, *args: object) -> tuple[Tensor, ...]:
        if callable(keyset):
            h, c, gates, h_n, c_n = keyset(*args)
        else:
            h, c, gates, h_n, c_n = below_recording(torch.ops.fastlstm.lstm_forward.default, keyset, args)
        *tensors, ctx.reverse, ctx.save = args
        ctx.requested = dispatch.requested()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*((gates,) if ctx.save else (gates, c)))
        ctx.save_for_backward(*tensors, h, c, gates)
        return h, c, gates, h_n, c_n

    @staticmethod
    def backward(ctx, dh, dc, _, dh_n, dc_n) -> tuple[Tensor | None, ...]:
        *tensors, h, c, gates = kept = saved_whole(ctx)
        inputs, saved = OpInputs(*tensors, ctx.reverse, ctx.save), Saved(h, c, gates)
        grads, needs_grad = Grads(dh, dc, dh_n, dc_n), ctx.needs_input_grad[1:7]
        with dispatch.with_requested(ctx.requested):
            if ctx.save == SAVE_NOTHING:
                inputs = inputs._replace(save=SAVE_ALL)
                saved = Saved(*torch.ops.fastlstm.lstm_forward(*inputs)[:3])
            if not is_recorded(*grads, *kept):
                out = _gradients_in_one(needs_grad, inputs, saved, grads)
                if out is not None:
                    return None, *out, None, None, None, None, None
            d_gates, dh_proj, dh0, dc0 = torch.ops.fastlstm.lstm_backward(*grads, *inputs, *saved)
        out = weight_gradients.of_weights(needs_grad, d_gates, dh_proj, inputs, saved)
        return None, *out, dh0, dc0, None, None, None, None, None


def _gradients_in_one(needs_grad: tuple[bool, ...], inputs: OpInputs, saved: Saved, grads: Grads) -> tuple | None:
    """All gradients by one call of the backend, where it has that. Hooks may have changed what autograd kept: checked."""
    with own_types(inputs.w_hh):
        inputs = validation.checked_inputs(inputs)
        saved, grads = validation.checked_gradients(inputs, saved, grads)
        return dispatch.gradients(needs_grad, inputs, saved, grads)


class Backward(SingleLevelFunction):
    """`lstm_backward` with its gradients, with respect to incoming gradients and inputs.

    h, c and gates get none: they depend on the inputs alone, and that dependence is in the gradients of the inputs.
    """

    @staticmethod
    def forward(ctx, keyset: DispatchKeySet, *args: object) -> tuple[Tensor, ...]:
        out = below_recording(torch.ops.fastlstm.lstm_backward.default, keyset, args)
        *tensors, ctx.reverse, _, _, _, _ = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = saved_whole(ctx)
        sources = [k for k in range(len(saved)) if ctx.needs_input_grad[k + 1]]
        with_grad = [k for k, g in enumerate(grads) if g is not None]

        def definition(*values: Tensor) -> tuple[Tensor, ...]:
            args = list(saved)
            for k, value in zip(sources, values, strict=True):
                args[k] = value
            inputs = (*args[4:], ctx.reverse, SAVE_ALL)
            h, c, gates, _, _ = reference.forward(*inputs)
            out = reference.backward(*args[:4], *inputs, h, c, gates)
            return tuple(out[k] for k in with_grad)

        out = [None] * (len(ctx.needs_input_grad) - 1)
        if with_grad:
            _, pull = torch.func.vjp(definition, *(saved[k] for k in sources))
            for k, grad in zip(sources, pull(tuple(grads[k] for k in with_grad)), strict=True):
                out[k] = grad
        return None, *out


class SumById(SingleLevelFunction):
    """`sum_by_id`: the gradient of a row is that of the sum it went into."""

    @staticmethod
    def forward(ctx, keyset: DispatchKeySet, rows: Tensor, ids: Tensor, V: int) -> Tensor:
        ctx.save_for_backward(ids)
        return below_recording(torch.ops.fastlstm.sum_by_id.default, keyset, (rows, ids, V))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None, None]:
        return None, grad[saved_whole(ctx)[0]], None, None


dynamo_skip(__name__)
