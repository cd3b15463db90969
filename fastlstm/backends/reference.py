"""The definition as a backend: any device and type, one step at a time. Last in every order of preference."""

from __future__ import annotations

from torch import Tensor

from fastlstm.backends.base import Backend, register
from fastlstm.ops import reference
from fastlstm.ops.arguments import Grads, OpInputs, Saved, Spec


@register("reference")
class Reference(Backend):
    """`fastlstm.ops.reference`; it can always run."""

    def describe(self, spec: Spec) -> str:
        return f"reference: plain torch, {spec.T} steps one at a time; it runs everything and is fast nowhere"

    def forward(self, inputs: OpInputs) -> tuple[Tensor, ...]:
        return reference.forward(*inputs)

    def backward(self, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, ...]:
        return reference.backward(*grads, *inputs, *saved)
