"""The one rule of accuracy, and what it compares: a result, the definition in float64, and torch in the same type.

Per tensor: ‖y − ref‖ / ‖ref‖ ≤ max(2 × the same error of nn.LSTM in the same type on the CPU, 4 eps). `ref` is
`fastlstm.ops.reference` in float64 on the rounded inputs. Where nn.LSTM cannot do what is asked (reset, gradients into all
cell states, the gradient at a projected h), the baseline is the same arithmetic as a loop of torch operations in the
same type. No tolerance is ever widened. Float32 that is multiplied as TF32 has TF32's eps: nn.LSTM on the CPU has no such
type to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm.backends.base import Backend
from fastlstm.ops import reference, validation
from fastlstm.ops.arguments import SAVE_ALL, OpInputs, Saved
from fastlstm.testing.cases import Case, Inputs, make, make_grads, rounded

LEAVES = ("x", "w_x", "bias", "w_hh", "w_hr", "h0", "c0")
FORWARD, BACKWARD = ("h", "c", "gates", "h_n", "c_n"), ("d_gates", "dh_proj", "dh0", "dc0")  # what the op returns
OP_OUTPUTS = ("h", "c", "h_n", "c_n", "d_gates", "dh_proj", "dh0", "dc0")


class WrongResultError(AssertionError):
    """A result with another shape or type than it must have, or with an error above what the rule allows.

    Raised, and never left to an `assert`: those have no text of their own, and `python -O` leaves them out.
    """


def error(actual: Tensor, ref64: Tensor) -> float:
    """‖actual − ref‖ / ‖ref‖ in float64; where ref is zero, 0 if actual is too, else infinity."""
    difference = (actual.detach().double().cpu() - ref64.double()).norm().item()
    size = ref64.double().norm().item()
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


TF32_EPS = 2.0**-10


def tolerance(ref64: Tensor, torch_same_type: Tensor, tf32: bool = False) -> float:
    """The relative error that the rule allows."""
    eps = TF32_EPS if tf32 else torch.finfo(torch_same_type.dtype).eps
    return max(2 * error(torch_same_type, ref64), 4 * eps)


def check(name: str, actual: Tensor, ref64: Tensor, torch_same_type: Tensor, tf32: bool = False) -> None:
    """Apply the rule to one tensor. The type of `torch_same_type`, or tf32, says which eps is meant.

    Raises WrongResultError where the tensor has another shape than `ref64` or an error above what is allowed.
    """
    if actual.shape != ref64.shape:
        raise WrongResultError(f"{name}: shape {tuple(actual.shape)}, expected {tuple(ref64.shape)}")
    _require_allowed(name, error(actual, ref64), tolerance(ref64, torch_same_type, tf32))


def _require_allowed(name: str, measured: float, allowed: float) -> None:
    if not measured <= allowed:  # so that NaN is wrong too
        raise WrongResultError(f"{name}: relative error {measured:.3g}, allowed {allowed:.3g}")


def check_all(
    actual: Mapping[str, Tensor | None], case: Case, dtype: torch.dtype, seed: int = 0, what: str = ""
) -> None:
    """Apply the rule to every tensor in `actual`, named as `expected` names them; raises WrongResultError."""
    ref, baselines = expected(case, dtype, seed), baseline(case, dtype, seed)
    for name, value in actual.items():
        if (value is None) != (ref[name] is None):
            given, wanted = ("nothing" if v is None else "a tensor" for v in (value, ref[name]))
            raise WrongResultError(f"{what} {case.id} {name}: {given}, expected {wanted}")
        if value is not None:
            check(f"{what} {case.id} {dtype} {name}", value, ref[name], baselines[name])


def draws(case: Case, seed: int = 0) -> list[int]:
    """The seeds of a case: several where its smallest tensors are so small that luck would decide.

    The error of one number (dh0 at B = H = 1) is anything between nothing and its worst, torch's too; the tensors of
    16 draws taken together have a typical one. Sums of cancelling terms make the difference a factor of a hundred. A case
    of many steps has more numbers than those, and its reference takes minutes.
    """
    numbers = case.B * min(case.H, case.P)
    few = numbers == 0 or case.T > 1000
    return list(range(seed, seed + 2 * (1 if few else max(1, min(16, 32 // numbers))), 2))


def check_backend(
    backend: Backend,
    case: Case,
    dtype: torch.dtype,
    *,
    save: int = 1,
    device: str | torch.device = "cpu",
    seed: int = 0,
    tf32: bool = False,
) -> None:
    """Run a backend's forward and backward on a case (inputs inside canaries) and check all that they return.

    Raises WrongResultError where a tensor has the wrong shape or type, or an error above what is allowed.
    """
    for what, (measured, allowed) in errors(
        backend, case, dtype, save=save, device=device, seed=seed, tf32=tf32
    ).items():
        _require_allowed(what, measured, allowed)


def errors(
    backend: Backend,
    case: Case,
    dtype: torch.dtype,
    *,
    save: int = 1,
    device: str | torch.device = "cpu",
    seed: int = 0,
    tf32: bool = False,
) -> dict[str, tuple[float, float]]:
    """The relative error, measured and allowed, of each tensor that a backend returns for a case, forward and backward.

    Raises WrongResultError where a tensor has the wrong shape or type.
    """
    outputs, ref, baselines = [], [], []
    for draw in draws(case, seed):
        outputs.append(_run(backend, case, dtype, save, device, draw))
        ref.append(expected(case, dtype, draw))
        baselines.append(baseline(case, dtype, draw))
    errors_by_name = {}
    for name in outputs[0]:
        what = f"{backend.name} save={save} {case.id} {dtype} {name}"
        actual, ref64, torch_same_type = (
            torch.cat([v[name].reshape(-1) for v in values]) for values in (outputs, ref, baselines)
        )
        errors_by_name[what] = error(actual, ref64), tolerance(ref64, torch_same_type, tf32)
    return errors_by_name


def _run(
    backend: Backend, case: Case, dtype: torch.dtype, save: int, device: str | torch.device, seed: int
) -> dict[str, Tensor]:
    inputs = make(case, dtype, seed, device=device, canary=True)
    inputs = Inputs(*(None if v is None else v if case.noncontiguous else v.contiguous() for v in inputs))
    checked = validation.checked_inputs(OpInputs(*inputs, case.reverse, save))
    what, like = f"{backend.name} save={save} {case.id} {dtype}", _layouts(checked)
    h, c, gates, h_n, c_n = results = backend.forward(checked)
    _require_layouts(what, dict(zip(FORWARD, results, strict=True)), like)
    grads = make_grads(case, dtype, seed + 1, device=device)
    grads_out = backend.backward(checked, *validation.checked_gradients(checked, Saved(h, c, gates), grads))
    _require_layouts(what, dict(zip(BACKWARD, grads_out, strict=True)), like)
    actual = dict(zip(OP_OUTPUTS, (h, c, h_n, c_n, *grads_out), strict=True))
    if not case.projection:
        del actual["dh_proj"]
    return actual


def _layouts(inputs: OpInputs) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each tensor that the op returns: the type of the weights, and of cell states that of the cell."""
    lead, dtype, cell = tuple(inputs.lead), inputs.w_hh.dtype, inputs.c0.dtype
    (B, H), P = inputs.c0.shape, inputs.h0.shape[1]
    return {
        "h": ((*lead, P), dtype),
        "c": ((*lead, H) if inputs.save else (0,), cell),
        "gates": ((*lead, 4 * H) if inputs.save == SAVE_ALL else (0,), dtype),
        "h_n": ((B, P), dtype),
        "c_n": ((B, H), cell),
        "d_gates": ((*lead, 4 * H), dtype),
        "dh_proj": ((0,) if inputs.w_hr is None else (*lead, P), dtype),
        "dh0": ((B, P), dtype),
        "dc0": ((B, H), cell),
    }


def _require_layouts(
    what: str, tensors: Mapping[str, Tensor], like: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> None:
    """Raise WrongResultError for a tensor of another shape or type; before anything else is computed from it."""
    for name, value in tensors.items():
        shape, dtype = like[name]
        if tuple(value.shape) != shape:
            raise WrongResultError(f"{what} {name}: shape {tuple(value.shape)}, expected {shape}")
        if value.dtype != dtype:
            raise WrongResultError(f"{what} {name}: type {value.dtype}, expected {dtype}")


@lru_cache(maxsize=64)
def expected(case: Case, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor | None]:
    """Outputs and gradients of the definition in float64 on the inputs of `make(case, dtype, seed)`.

    Keys: h, c, h_n, c_n, d_gates, dh_proj, dh0, dc0, and d + leaf for every leaf (dx, dw_x, dbias, dw_hh, dw_hr).
    """
    inputs = _leaves(make(case, dtype, seed).to(torch.float64))
    grads = rounded(make_grads(case, dtype, seed + 1), torch.float64)
    h, c, gates, h_n, c_n = reference.forward(*inputs, case.reverse, 1)
    _backward([h, c, h_n, c_n], list(grads))
    with torch.no_grad():
        d_gates, dh_proj, _, _ = reference.backward(*grads, *inputs, case.reverse, 1, h, c, gates)
    return _collect(inputs, h, c, h_n, c_n, d_gates, dh_proj if case.projection else None)


@lru_cache(maxsize=64)
def baseline(case: Case, dtype: torch.dtype, seed: int = 0, cells: bool = True) -> dict[str, Tensor | None]:
    """The same, by torch in `dtype` on the CPU. `cells=False`: no gradient flows into c, so nn.LSTM can do it."""
    inputs = _leaves(make(case, dtype, seed)._replace(c0=make(case, dtype, seed).c0.to(dtype)))
    dh, dc, dh_n, dc_n = (g.to(dtype) for g in make_grads(case, dtype, seed + 1))
    x_gates = inputs.w_x[inputs.ids] if case.ids else F.linear(inputs.x, inputs.w_x, inputs.bias)
    x_gates.retain_grad()
    dh_proj = torch.zeros(*x_gates.shape[:-1], case.P, dtype=dtype, device="cpu")
    if cells or case.reset or case.projection:
        h, c, h_n, c_n, steps = loop(case, inputs, x_gates)
        _backward([h, c, h_n, c_n], [dh, dc if cells else torch.zeros_like(dc), dh_n, dc_n])
        dh_proj = torch.cat([steps[t].grad for t in sorted(steps)]).reshape_as(h) if steps else dh_proj
    else:
        h, h_n, c_n = _nn_lstm(case, inputs, x_gates)
        c = None
        _backward([h, h_n, c_n], [dh, dh_n, dc_n])
    return _collect(
        inputs,
        h,
        c,
        h_n,
        c_n,
        torch.zeros_like(x_gates) if x_gates.grad is None else x_gates.grad,
        dh_proj if case.projection else None,
    )


def _backward(outputs: list[Tensor], grads: list[Tensor]) -> None:
    """Run backward from the outputs that depend on anything (with no rows, some do not)."""
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if y.requires_grad]
    torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])


def _leaves(inputs: Inputs) -> Inputs:
    leaves = {k: v.detach().requires_grad_() for k, v in inputs._asdict().items() if k in LEAVES and v is not None}
    return inputs._replace(**leaves)


def _collect(inputs: Inputs, h, c, h_n, c_n, d_gates, dh_proj) -> dict[str, Tensor | None]:
    values = {"h": h, "c": c, "h_n": h_n, "c_n": c_n, "d_gates": d_gates, "dh_proj": dh_proj}
    for name in LEAVES:
        leaf = getattr(inputs, name)
        values["d" + name] = None if leaf is None else torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return {name: None if v is None else v.detach() for name, v in values.items()}


def loop(case: Case, inputs: Inputs, x_gates: Tensor) -> tuple:
    """nn.LSTM's own arithmetic, everything in one type, as a loop of torch operations that can reset the state."""
    inputs_by_row = inputs.x if inputs.ids is None else inputs.ids
    x_gates = reference.by_step(x_gates.reshape(case.N, 4 * case.H), inputs_by_row, inputs.batch_sizes)
    h, c, state = {}, {}, (inputs.h0, inputs.c0)
    for t, rows, n in reference.steps(inputs_by_row, inputs.batch_sizes, case.reverse):
        h_prev, c_prev = state[0][:n], state[1][:n]
        if case.reset:
            keep = ~inputs.reset.reshape(-1, 1)[rows]
            h_prev, c_prev = h_prev * keep, c_prev * keep
        i, f, g, o = reference.activate(x_gates[t] + F.linear(h_prev, inputs.w_hh))
        c[t] = f * c_prev + i * g
        h_unprojected = o * c[t].tanh()
        h[t] = h_unprojected if inputs.w_hr is None else F.linear(h_unprojected, inputs.w_hr)
        h[t].retain_grad()
        state = torch.cat([h[t], state[0][n:]]), torch.cat([c[t], state[1][n:]])
    lead = inputs_by_row.shape if case.ids else inputs_by_row.shape[:-1]
    h_all = torch.cat([h[t] for t in sorted(h)]) if h else inputs.h0[:0].clone()
    c_all = torch.cat([c[t] for t in sorted(c)]) if c else inputs.c0[:0].clone()
    return h_all.reshape(*lead, case.P), c_all.reshape(*lead, case.H), state[0] * 1, state[1] * 1, h


def _nn_lstm(case: Case, inputs: Inputs, x_gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """nn.LSTM on the pre-activations, with an identity in the place of W_ih; reversed input is flipped row by row."""
    kind = {"dtype": x_gates.dtype, "device": x_gates.device}
    lstm = torch.nn.LSTM(4 * case.H, case.H, bias=False, **kind)
    del lstm.weight_ih_l0, lstm.weight_hh_l0
    lstm.weight_ih_l0, lstm.weight_hh_l0 = torch.eye(4 * case.H, **kind), inputs.w_hh
    order = _flip(case) if case.reverse else None
    rows = x_gates.reshape(case.N, 4 * case.H)
    rows = rows if order is None else rows[order]
    x = PackedSequence(rows, inputs.batch_sizes) if case.packed else rows.reshape(case.T, case.B, 4 * case.H)
    out, (h_n, c_n) = lstm(x, (inputs.h0[None], inputs.c0[None]))
    h = (out.data if case.packed else out).reshape(case.N, case.H)
    h = h if order is None else h[order]
    return h if case.packed else h.reshape(case.T, case.B, case.H), h_n[0], c_n[0]


def _flip(case: Case) -> Tensor:
    """(N,) which row takes the place of each when every sequence is turned around; its own inverse."""
    sizes = case.batch_sizes if case.packed else torch.full((case.T,), case.B, dtype=torch.int64, device="cpu")
    first = (sizes.cumsum(0) - sizes).tolist()
    lengths = sorted(case.lengths, reverse=True) if case.packed else [case.T] * case.B
    order = [0] * case.N
    for b, n in enumerate(lengths):
        for t in range(n):
            order[first[t] + b] = first[n - 1 - t] + b
    return torch.tensor(order, dtype=torch.int64, device="cpu")
