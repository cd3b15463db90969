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

from fastlstm.backends.base import Backend, RefusedError, UnfitError
from fastlstm.ops import reference, validation
from fastlstm.ops.arguments import Grads, OpInputs, Saved
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


def by_torch(
    case: Case, layers: Sequence[OpInputs], chained: bool, dtype: torch.dtype, grads: Sequence[Grads]
) -> list[dict[str, Tensor]]:
    """The same by torch's operations, everything in one type; and d_gates, dh0 and dc0 for incoming gradients."""
    results: list[dict[str, Tensor]] = []
    outputs, given = [], []
    for layer, own in zip(layers, grads, strict=True):
        inputs = _on_cpu(layer, dtype, dtype)
        if chained and results:
            inputs = inputs._replace(x=results[-1]["h"])
        leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in ("w_hh", "h0", "c0")}
        inputs = inputs._replace(**leaves)
        x_gates = inputs.w_x[inputs.ids] if inputs.x is None else F.linear(inputs.x, inputs.w_x, inputs.bias)
        x_gates = x_gates if x_gates.requires_grad else x_gates.requires_grad_()
        x_gates.retain_grad()
        of_layer = replace(case, reverse=inputs.reverse, ids=inputs.x is None)
        h, c, h_n, c_n, _ = accuracy.loop(of_layer, Inputs(*inputs[:-2]), x_gates)
        results.append({"h": h, "c": c, "h_n": h_n, "c_n": c_n, "d_gates": x_gates, **leaves})
        pairs = [(y, g) for y, g in zip((h, c, h_n, c_n), own, strict=True) if g is not None]
        outputs += [y for y, _ in pairs]
        given += [g.to("cpu", dtype) for _, g in pairs]
    torch.autograd.backward(outputs, given)
    for result in results:
        result.update(d_gates=result["d_gates"].grad, dh0=result["h0"].grad, dc0=result["c0"].grad)
    return [{name: value.detach() for name, value in result.items()} for result in results]


def grads_of(layers: Sequence[OpInputs], chained: bool, seed: int) -> list[Grads]:
    """Random gradients for what leaves the layers; chained, none for h below another layer."""
    generator, made = torch.Generator().manual_seed(seed), []
    for i, inputs in enumerate(layers):

        def draw(*shape: int, like: Tensor) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(like)

        last, H = not chained or i + 1 == len(layers), inputs.H
        dh = draw(*inputs.lead, H, like=inputs.h0) if last else None
        dc = draw(*inputs.lead, H, like=inputs.c0) if i % 2 else None
        made.append(Grads(dh, dc, draw(*inputs.h0.shape, like=inputs.h0), draw(*inputs.c0.shape, like=inputs.c0)))
    return made


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
    grads = grads_of(layers, chained, seed + 1)
    definition = by_definition(layers, chained)
    ref64, same = (by_torch(case, layers, chained, kind, grads) for kind in (torch.float64, dtype))
    found = {}

    def compare(i: int, name: str, actual: Tensor, ref: Tensor) -> None:
        if actual.numel():
            allowed = accuracy.tolerance(ref, same[i][name], tf32)
            found[f"{case.id} layer {i} {name}"] = accuracy.error(actual, ref), allowed

    results = backend.forward_layers(layers, chained)
    for i, of_layer in enumerate(results):
        for name, actual in zip(FORWARD, of_layer, strict=True):
            kept = save if name in ("c", "gates") else 1
            shape = definition[i][name].shape if kept == 1 or (kept == 2 and name == "c") else (0,)
            kind = cell_type(dtype) if name in ("c", "c_n") else dtype
            if tuple(actual.shape) != tuple(shape) or actual.dtype != kind:
                got = f"{actual.dtype} of {tuple(actual.shape)}"
                raise accuracy.WrongResultError(f"layer {i} {name}: {got}, expected {kind} of {tuple(shape)}")
            if name != "gates":  # what they are for, gradients, is judged
                compare(i, name, actual, definition[i][name])
    if not save:
        return found
    saved = [Saved(*of_layer[:3]) for of_layer in results]
    checked = [validation.checked_gradients(*of) for of in zip(layers, saved, grads, strict=True)]
    try:
        back = backend.backward_layers(layers, *map(list, zip(*checked, strict=True)), chained)
    except RefusedError:
        raise
    except UnfitError:  # forward fits where backward need not
        return found
    for i, (d_gates, _, dh0, dc0) in enumerate(back):
        for name, actual in (("d_gates", d_gates), ("dh0", dh0), ("dc0", dc0)):
            compare(i, name, actual, ref64[i][name])
    return found


def check(backend: Backend, case: Case, dtype: torch.dtype, **how: object) -> None:
    """Raise WrongResultError where an error of `errors` is above what is allowed."""
    for what, (measured, allowed) in errors(backend, case, dtype, **how).items():
        if not measured <= allowed:
            raise accuracy.WrongResultError(f"{what}: relative error {measured:.3g}, allowed {allowed:.3g}")
