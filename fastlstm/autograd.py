"""Gradients of the op: the autograd Functions that are registered as its own Autograd implementation.

`Forward` calls the op below autograd, and in backward `lstm_backward` and the products of `fastlstm.gradients`.
`Backward` makes `lstm_backward` itself differentiable: its gradient is that of the definition (`fastlstm.reference`),
run again from the inputs, so second derivatives are right with every backend and as slow as the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import dispatch, gradients, reference

_N_INPUTS = 13  # of lstm_forward; the last two, reverse and save, are no tensors


def _look_through(*args: object) -> bool:
    return any(isinstance(v, Tensor) and v.requires_grad for v in args)


_any_grad = getattr(torch._C, "_any_requires_grad", _look_through)  # torch before 2.5 has no quick one


def register(library: torch.library.Library) -> None:
    """Make the Functions the Autograd implementations of the ops; they are skipped where nothing requires grad."""

    def implement(name: str, function: type[torch.autograd.Function]) -> None:
        op = getattr(torch.ops.fastlstm, name).default

        def call(keyset: torch._C.DispatchKeySet, *args: object) -> object:
            if torch.is_grad_enabled() and _any_grad(*args):
                return function.apply(keyset, *args)
            return _below(op, keyset, args)

        library.impl(name, call, "Autograd", with_keyset=True)

    implement("lstm_forward", Forward)
    implement("lstm_backward", Backward)
    implement("sum_by_id", SumById)


def _below(op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, args: tuple) -> object:
    """Run the op underneath autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


class Forward(torch.autograd.Function):
    """`lstm_forward` with its gradients. With save=0 nothing is kept and backward runs forward once more."""

    @staticmethod
    def forward(ctx, keyset: torch._C.DispatchKeySet, *inputs: object) -> tuple[Tensor, ...]:
        h, c, gates, h_n, c_n = _below(torch.ops.fastlstm.lstm_forward.default, keyset, inputs)
        *tensors, ctx.reverse, ctx.save = inputs
        ctx.forced = dispatch.forced()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*((gates,) if ctx.save else (gates, c)))
        ctx.save_for_backward(*tensors, h, c, gates)
        return h, c, gates, h_n, c_n

    @staticmethod
    def backward(ctx, dh, dc, _, dh_n, dc_n) -> tuple[Tensor | None, ...]:
        *tensors, h, c, gates = ctx.saved_tensors
        inputs = (*tensors, ctx.reverse, ctx.save)
        with dispatch.again(ctx.forced):
            if ctx.save == 0:
                inputs = (*tensors, ctx.reverse, 1)
                h, c, gates, _, _ = torch.ops.fastlstm.lstm_forward(*inputs)
            dxg, d_hr, dh0, dc0 = torch.ops.fastlstm.lstm_backward(dh, dc, dh_n, dc_n, *inputs, h, c, gates)
        found = gradients.of_weights(ctx.needs_input_grad[1:7], dxg, d_hr, inputs, h, c, gates)
        return None, *found, dh0, dc0, None, None, None, None, None


class Backward(torch.autograd.Function):
    """`lstm_backward` with its gradients, with respect to incoming gradients and inputs.

    h, c and gates get none: they depend on the inputs alone, and that dependence is in the gradients of the inputs.
    """

    @staticmethod
    def forward(ctx, keyset: torch._C.DispatchKeySet, *args: object) -> tuple[Tensor, ...]:
        found = _below(torch.ops.fastlstm.lstm_backward.default, keyset, args)
        *tensors, ctx.reverse, _, _, _, _ = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return found

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1 : len(ctx.saved_tensors) + 1]
        with torch.enable_grad():
            args = [_separate(v, need) for v, need in zip(ctx.saved_tensors, wanted, strict=True)]
            inputs = (*args[4:], ctx.reverse, 1)
            h, c, gates, _, _ = reference.forward(*inputs)
            outputs = reference.backward(*args[:4], *inputs, h, c, gates)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        asked = [v for v, need in zip(args, wanted, strict=True) if need]
        found = iter([None] * len(asked))
        if pairs:
            ys, gs = zip(*pairs, strict=True)
            create = torch.is_grad_enabled()
            found = iter(torch.autograd.grad(ys, asked, gs, create_graph=create, allow_unused=True))
        by_place = [next(found) if need else None for need in wanted]
        return None, *by_place, *[None] * (len(ctx.needs_input_grad) - 1 - len(by_place))


def _separate(value: Tensor | None, differentiable: bool) -> Tensor | None:
    """A stand-in to differentiate with respect to; it stays connected to what came before if that is wanted, too."""
    if not differentiable:
        return value
    return value.view_as(value)


class SumById(torch.autograd.Function):
    """`sum_by_id`: the gradient of a row is that of the sum it went into."""

    @staticmethod
    def forward(ctx, keyset: torch._C.DispatchKeySet, rows: Tensor, ids: Tensor, V: int) -> Tensor:
        ctx.save_for_backward(ids)
        return _below(torch.ops.fastlstm.sum_by_id.default, keyset, (rows, ids, V))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None, None]:
        return None, grad[ctx.saved_tensors[0]], None, None
