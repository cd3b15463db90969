"""Several layers, or both directions of one, in one launch of a backend, judged by the rule of `accuracy`.

The layers of a case: the first is the case itself; those above it take its h. Directions: the case, and the same rows in
the other direction with other weights. The reference is the definition layer by layer in float64, the baseline a loop of
torch operations in the case's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.backends.base import Backend
from fastlstm.ops import reference, validation
from fastlstm.ops.arguments import OpInputs
from fastlstm.ops.reference import cell_type
from fastlstm.testing import accuracy
from fastlstm.testing.accuracy import FORWARD
from fastlstm.testing.cases import Case, Inputs, make


def inputs_of(
    case: Case, dtype: torch.dtype, count: int, chained: bool, *, save: int = 1, seed: int = 0, device: str = "cpu"
) -> list[OpInputs]:
    """The op's arguments of each layer or direction; chained: x of those above the first is memory full of NaN."""
    first = OpInputs(*make(case, dtype, seed, device=device), case.reverse, save)
    layers, above = [first], replace(case, I=case.H, ids=False, V=0)
    for i in range(1, count):
        if chained:
            other = OpInputs(*make(above, dtype, seed + 100 * i, device=device), case.reverse, save)
            x = first.w_hh.new_full((*first.lead, case.H), float("nan"))
            layers.append(other._replace(x=x, reset=first.reset))
        else:
            other = OpInputs(*make(case, dtype, seed + 100 * i, device=device), not case.reverse, save)
            layers.append(other._replace(x=first.x, ids=first.ids, reset=first.reset))
    return [validation.checked_inputs(inputs) for inputs in layers]


def _on_cpu(inputs: OpInputs, dtype: torch.dtype, cell: torch.dtype) -> OpInputs:
    cast = {
        name: value.to("cpu", cell if name == "c0" else dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs._asdict().items()
        if isinstance(value, Tensor)
    }
    return inputs._replace(**cast, save=1)


def by_definition(layers: Sequence[OpInputs], chained: bool) -> list[dict[str, Tensor]]:
    """What the definition gives in float64, layer by layer."""
    results: list[dict[str, Tensor]] = []
    for layer in layers:
        inputs = _on_cpu(layer, torch.float64, torch.float64)
        if chained and results:
            inputs = inputs._replace(x=results[-1]["h"])
        results.append(dict(zip(FORWARD, reference.forward(*inputs), strict=True)))
    return results


def by_torch(case: Case, layers: Sequence[OpInputs], chained: bool, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """The same by torch's operations, everything in one type."""
    results: list[dict[str, Tensor]] = []
    for layer in layers:
        inputs = _on_cpu(layer, dtype, dtype)
        if chained and results:
            inputs = inputs._replace(x=results[-1]["h"].detach())
        inputs = inputs._replace(w_hh=inputs.w_hh.detach().requires_grad_())  # loop keeps gradients
        x_gates = inputs.w_x[inputs.ids] if inputs.x is None else F.linear(inputs.x, inputs.w_x, inputs.bias)
        of_layer = replace(case, reverse=inputs.reverse, ids=inputs.x is None)
        h, c, h_n, c_n, _ = accuracy.loop(of_layer, Inputs(*inputs[:-2]), x_gates)
        results.append({"h": h, "c": c, "h_n": h_n, "c_n": c_n})
    return results


def errors(
    backend: Backend,
    case: Case,
    dtype: torch.dtype,
    *,
    count: int,
    chained: bool,
    save: int = 1,
    device: str = "cpu",
    seed: int = 0,
    tf32: bool = False,
) -> dict[str, tuple[float, float]]:
    """The relative error, measured and allowed, of each tensor that one launch returns.

    Raises WrongResultError where a tensor has the wrong shape or type.
    """
    layers = inputs_of(case, dtype, count, chained, save=save, seed=seed, device=device)
    ref64, same = by_definition(layers, chained), by_torch(case, layers, chained, dtype)
    found = {}
    for i, results in enumerate(backend.forward_layers(layers, chained)):
        for name, actual in zip(FORWARD, results, strict=True):
            kept = save if name in ("c", "gates") else 1
            shape = ref64[i][name].shape if kept == 1 or (kept == 2 and name == "c") else (0,)
            kind = cell_type(dtype) if name in ("c", "c_n") else dtype
            if tuple(actual.shape) != tuple(shape) or actual.dtype != kind:
                got = f"{actual.dtype} of {tuple(actual.shape)}"
                raise accuracy.WrongResultError(f"layer {i} {name}: {got}, expected {kind} of {tuple(shape)}")
            if actual.numel() and name != "gates":  # what gates are for, gradients, is judged
                ref, baseline = ref64[i][name], same[i][name].detach()
                found[f"{case.id} layer {i} {name}"] = (
                    accuracy.error(actual, ref),
                    accuracy.tolerance(ref, baseline, tf32),
                )
    return found


def check(backend: Backend, case: Case, dtype: torch.dtype, **how: object) -> None:
    """Raise WrongResultError where an error of `errors` is above what is allowed."""
    for what, (measured, allowed) in errors(backend, case, dtype, **how).items():
        if not measured <= allowed:
            raise accuracy.WrongResultError(f"{what}: relative error {measured:.3g}, allowed {allowed:.3g}")
