"""Several layers, or both directions of one, in one launch each way: one node of autograd over all of them.

A layer above another reads that layer's h inside the launch, so nothing between two layers passes through autograd. Second
derivatives run the layers one by one on the op, whose own rules have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm import dispatch
from fastlstm._torch_compat import any_requires_grad, dynamo_skip, is_plain, is_plain_eager, is_recorded
from fastlstm.memory import saved_whole
from fastlstm.ops import validation, weight_gradients
from fastlstm.ops.arguments import SAVE_NOTHING, Grads, OpInputs, Saved
from fastlstm.ops.autocast import own_types
from fastlstm.ops.lstm import run_forward

_TENSORS = len(OpInputs._fields) - 2  # of a layer; reverse and save follow
Results = tuple[Tensor, ...]  # h, c, gates, h_n, c_n, as the op returns them


def run_together(layers: Sequence[OpInputs], chained: bool) -> list[Results] | None:
    """Run layers or directions in one launch.

    Args:
        layers: their arguments, the lowest layer's first.
        chained: each is above the one before, whose h is written into its x: memory that nothing else uses.

    Returns:
        Of each what the op returns; chained, h carries gradients for the last one only. None where they are to run one by
        one: somebody may observe torch's operations, or the launch was refused.
    """
    if torch.compiler.is_compiling() or not is_plain_eager():
        return None
    if not all(v is None or is_plain(v) for inputs in layers for v in inputs[:-2]):
        return None
    grad = torch.is_grad_enabled() and any(any_requires_grad(*inputs) for inputs in layers)
    if grad and layers[0].save == SAVE_NOTHING:
        return None
    # what needs no gradients is made as the op makes it: a view of no_grad could not be changed in place
    with torch.no_grad() if grad else nullcontext(), own_types(layers[0].w_hh):
        results = dispatch.forward_layers([validation.checked_inputs(inputs) for inputs in layers], chained)
    if results is None or not grad:
        return results
    how = _How(chained, [(inputs.reverse, inputs.save) for inputs in layers], results)
    given = (v for i, inputs in enumerate(layers) for v in _without_inner_x(inputs, chained and i > 0))
    return how.results(_Together.apply(how, *given))


def _without_inner_x(inputs: OpInputs, above: bool) -> tuple[Tensor | None, ...]:
    return (None, *inputs[1:-2]) if above else inputs[:-2]


class _How(NamedTuple):
    """What a node runs, beside tensors: its layers' directions and what they save, and what they gave."""

    chained: bool
    layers: list[tuple[bool, int]]
    ready: list[Results]

    def inputs(self, tensors: Sequence[Tensor | None], h: Sequence[Tensor]) -> list[OpInputs]:
        """The layers' arguments from the node's tensors; x of a layer above another is h of that one."""
        groups = (tensors[i : i + _TENSORS] for i in range(0, len(tensors), _TENSORS))
        layers = [OpInputs(*group, *flags) for group, flags in zip(groups, self.layers, strict=True)]
        if not self.chained:
            return layers
        return [layers[0], *(inputs._replace(x=x) for inputs, x in zip(layers[1:], h, strict=False))]

    def outputs(self) -> list[Tensor]:
        """What the node returns: h where it leaves the node, then c, gates, h_n and c_n, layer by layer."""
        last = len(self.ready) - 1
        return [v for i, r in enumerate(self.ready) for v in (r[1:] if self.chained and i < last else r)]

    def by_layer(self, flat: Sequence[Tensor | None]) -> list[tuple[Tensor | None, ...]]:
        """`outputs`, or their gradients, as five of each layer; h that stays inside is None."""
        values, last = iter(flat), len(self.ready) - 1
        inside = [self.chained and i < last for i in range(last + 1)]
        return [(None if is_inside else next(values), *(next(values) for _ in range(4))) for is_inside in inside]

    def results(self, flat: Sequence[Tensor]) -> list[Results]:
        """The node's results as the layers'."""
        return [
            (ready[0] if own[0] is None else own[0], *own[1:])
            for ready, own in zip(self.ready, self.by_layer(flat), strict=True)
        ]


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx, how: _How, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.chained, ctx.layers, ctx.requested = how.chained, how.layers, dispatch.requested()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(r[2] for r in how.ready))
        ctx.save_for_backward(*tensors, *(v for r in how.ready for v in r[:3]))
        return tuple(how.outputs())

    @staticmethod
    def backward(ctx, *flat: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, count = saved_whole(ctx), len(ctx.layers)
        tensors, made = kept[: count * _TENSORS], kept[count * _TENSORS :]
        saved = [Saved(*made[i : i + 3]) for i in range(0, len(made), 3)]
        how = _How(ctx.chained, ctx.layers, [(*s, None, None) for s in saved])
        layers, grads = how.inputs(tensors, [s.h for s in saved]), how.by_layer(flat)
        grads = [Grads(dh, dc, dh_n, dc_n) for dh, dc, _, dh_n, dc_n in grads]
        wanted = ctx.needs_input_grad[1:]
        with dispatch.with_requested(ctx.requested):
            if is_recorded(*flat, *kept):
                return None, *_recorded(how, tensors, wanted, flat)
            with own_types(layers[0].w_hh):
                layers = [validation.checked_inputs(inputs) for inputs in layers]
                return None, *_gradients(how, layers, saved, grads, wanted)


def _gradients(
    how: _How, layers: list[OpInputs], saved: list[Saved], grads: list[Grads], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient of each tensor of each layer, in one launch; layer by layer where that was refused."""
    checked = [validation.checked_gradients(*of) for of in zip(layers, saved, grads, strict=True)]
    together = dispatch.backward_layers(layers, *map(list, zip(*checked, strict=True)), how.chained)
    out: list[list[Tensor | None]] = []
    dh = None  # from the layer above
    for i in reversed(range(len(layers))):
        own, own_grads = checked[i]
        if together is None and dh is not None:
            own_grads = own_grads._replace(dh=dh)
        inside = how.chained and i > 0  # x is h of the layer below
        needs_x, *needs = wanted[i * _TENSORS : i * _TENSORS + 6]
        needs = (needs_x or (inside and together is None), *needs)
        # the last reference to what one launch gave, so that a layer's gradients live no longer than they are used
        d_gates, dh_proj, dh0, dc0 = (
            dispatch.backward(layers[i], own, own_grads) if together is None else together.pop()
        )
        dx, *of_weights = weight_gradients.of_weights(needs, d_gates, dh_proj, layers[i], own)
        dh = dx if inside else None
        out.append([None if inside else dx, *of_weights, dh0, dc0, None, None, None])
    return [v for of_layer in reversed(out) for v in of_layer]


def _recorded(
    how: _How, tensors: Sequence[Tensor | None], wanted: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again: of the layers run one by one on the op."""
    with torch.enable_grad():
        # views, so that each place of a tensor that stands in several (x of two directions) has a gradient of its own
        tensors = [v.view_as(v) if wants else v for v, wants in zip(tensors, wanted, strict=True)]
        results: list[Results] = []
        for inputs in how.inputs(tensors, [None] * len(how.layers)):
            if how.chained and results:
                inputs = inputs._replace(x=results[-1][0])
            results.append(run_forward(inputs))
        outputs = how._replace(ready=results).outputs()
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        sources = [v for v, wants in zip(tensors, wanted, strict=True) if wants]
        found = torch.autograd.grad(
            [y for y, _ in pairs], sources, [g for _, g in pairs], create_graph=True, allow_unused=True
        )
    gradients = iter(found)
    return [next(gradients) if wants else None for wants in wanted]


dynamo_skip(__name__)
