"""Every kernel of the cuda backend against the definition in float64, forward and backward apart, in every type.

The rule is that of fastlstm/testing/accuracy.py: ‖y − ref‖ / ‖ref‖ ≤ max(2 × the same error of torch's operations in the same
type, 4 eps). Errors are kept as numbers beside what is allowed. Backward gets the states of the definition, so that it is
judged by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import torch

import fastlstm
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import GpuExecutor, choice_columns, dtype
from fastlstm.backends import load
from fastlstm.backends.base import UnfitError
from fastlstm.backends.cuda.launch import LaunchPlan
from fastlstm.ops import reference
from fastlstm.testing import layers
from fastlstm.testing.accuracy import TF32_EPS
from fastlstm.testing.cases import Case, Inputs, make, make_grads, rounded

LAYERS = "lean_layers"  # several layers, or both directions, in one launch of `lean`
KERNELS = ("lean", "cooperative", "single_block", "per_step")
FORWARD, BACKWARD = ("h", "c", "gates", "h_n", "c_n"), ("d_gates", "dh_proj", "dh0", "dc0")  # what the op returns


def _case(name: str, T: int, B: int, I: int, H: int, P: int = 0, **on: Any) -> Case:
    return Case(name, T, B, I, H, P or H, projection=P > 0, **on)


def _ragged(T: int, B: int) -> tuple[int, ...]:
    return tuple(T - b * 5 % T for b in range(B))


CASES = (
    _case("dense", 6, 5, 7, 40),
    _case("odd", 5, 9, 3, 37),
    _case("two tiles", 9, 16, 16, 96),
    _case("packed reverse", 7, 12, 5, 48, lengths=_ragged(7, 12), reverse=True),
    _case("resets ids", 8, 6, 0, 64, V=11, ids=True, reset=True),
    _case("large", 12, 16, 32, 512),
    _case("wide", 6, 33, 16, 256, reverse=True, reset=True),
    _case("long", 300, 8, 8, 128),
    _case("packed ids resets", 9, 70, 0, 128, V=11, ids=True, reset=True, lengths=_ragged(9, 70)),
    _case("parts", 5, 64, 16, 1024),
    _case("projected", 5, 9, 8, 48, 20),
)


def items(executor: GpuExecutor) -> list[Item]:
    executor.start()
    maths = ("bf16", "tf32", "f32") if executor.rehearsal else ("bf16", "f16", "tf32", "f32")
    pairs = [(kernel, math) for kernel in KERNELS for math in maths if (kernel, math) != ("lean", "f32")]
    pairs += [(LAYERS, math) for math in maths if math != "f32"]
    return [Item(f"{kernel} {math}", (kernel, math), f"{kernel} {math}") for kernel, math in pairs]


def cases(executor: GpuExecutor) -> tuple[Case, ...]:
    small = (_case("dense", 3, 3, 5, 24), _case("packed reverse", 3, 4, 5, 16, lengths=_ragged(3, 4), reverse=True))
    return (
        (*small, _case("resets ids", 3, 2, 0, 24, V=5, ids=True, reset=True), CASES[-1])
        if executor.rehearsal
        else CASES
    )


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    kernel, math = item.values
    if kernel == LAYERS:
        yield from check_layers(executor, math, cases(executor))
    else:
        yield from check_kernel(executor, kernel, math, cases(executor))


def check_layers(executor: GpuExecutor, math: str, cases: tuple[Case, ...]) -> Iterator[dict]:
    """Rows of two and three layers, and of both directions, in one launch each way, on the cases of one layer."""
    backend, how = load(executor.backend), {"device": str(executor.device), "tf32": math == "tf32"}
    with executor.math(math), fastlstm.backend(executor.backend):
        for case, (count, chained) in product(cases, ((2, True), (3, True), (2, False))):
            columns = {
                "kernel": LAYERS,
                "math": math,
                "case": f"{case.id}, {count} {'layers' if chained else 'directions'}",
            }
            if case.projection or (LAYERS, math, False) in executor.timed_out:
                continue
            try:
                errors = layers.errors(backend, case, dtype(math), count=count, chained=chained, **how)
            except UnfitError as why:
                yield {**columns, "skipped": str(why)}
                continue
            status = executor.take_status()
            if status:
                executor.timed_out.add((LAYERS, math, False))
            worst = max(error / allowed if error == error else float("inf") for error, allowed in errors.values())
            fine = not status and worst <= 1
            yield {**columns, "fine": fine, "status": status, "repeats": True, "worst": worst, "errors": errors}


def check_kernel(executor: GpuExecutor, kernel: str, math: str, cases: tuple[Case, ...]) -> Iterator[dict]:
    """Rows of the cases through one kernel in one type."""
    with executor.math(math):
        for position, case in enumerate(cases):
            try:
                # the same tilings again where only some of the cases are run, by the stage `sanitizer`
                picks = _picks(executor, kernel, math, case, CASES.index(case) if case in CASES else position)
            except ValueError as why:
                yield {"kernel": kernel, "math": math, "case": case.id, "skipped": str(why)}
                continue
            for pick, (forward, backward) in enumerate(picks):
                plan = LaunchPlan(forward, backward, math == "tf32")
                for back in (False, True):
                    if (kernel, math, back) in executor.timed_out:
                        continue
                    choice = backward if back else forward
                    result = _compared(executor, plan, math, case, back)
                    if result["status"]:
                        executor.timed_out.add((kernel, math, back))
                    yield {"math": math, "case": case.id, "pick": pick, "backward": back, **result, **_short(choice)}


def _short(choice: Any) -> dict:
    return {"kernel": choice.kernel, "tiling": choice_columns(choice)["tiling"]}


def _picks(executor: GpuExecutor, kernel: str, math: str, case: Case, number: int) -> list[tuple]:
    """The planner's tilings and two others, different ones from case to case. ValueError where the kernel cannot run."""
    picks = [executor.choose(math, case.H, case.B, only=kernel, projected=case.projection)]
    if kernel != "per_step":
        both = [
            [c for c in executor.tilings(math, case.H, case.B, back) if c.kernel == kernel] for back in (False, True)
        ]
        if all(both):
            picks += [
                tuple(tilings[(1 + 7 * number) % len(tilings)] for tilings in both),
                tuple(tilings[-1 - 5 * number % len(tilings)] for tilings in both),
            ]
    return picks


def _compared(executor: GpuExecutor, plan: LaunchPlan, math: str, case: Case, back: bool) -> dict:
    """One direction of one case with one plan: errors and what is allowed, by name of the result."""
    inputs, grads, references, torch_results, saved = _expected(math, case, str(executor.device))

    def call() -> dict[str, torch.Tensor]:
        if back:
            out = executor.backward(plan, grads, inputs, saved, case.reverse)
        else:
            out = executor.forward(plan, inputs, case.reverse)
        return {name: value for name, value in zip(BACKWARD if back else FORWARD, out, strict=True) if value.numel()}

    results = call()
    status = executor.take_status()
    again = results if status else call()
    status = status or executor.take_status()
    errors = {}
    for name, value in results.items():
        reference_value, torch_result = references[name], torch_results[name]
        alike = (value.shape, value.dtype) == (torch_result.shape, torch_result.dtype)
        errors[name] = [
            _error(value, reference_value) if alike else float("inf"),
            max(2 * _error(torch_result, reference_value), 4 * _eps(math)),
        ]
    repeats = all(torch.equal(results[name].nan_to_num(), again[name].nan_to_num()) for name in results)
    fine = not status and repeats and all(error <= allowed for error, allowed in errors.values())  # false for NaN
    worst = max(error / allowed if error == error else float("inf") for error, allowed in errors.values())
    return {"fine": fine, "status": status, "repeats": repeats, "worst": worst, "errors": errors}


def _eps(math: str) -> float:
    return TF32_EPS if math == "tf32" else torch.finfo(dtype(math)).eps


def _error(result: torch.Tensor, reference_value: torch.Tensor) -> float:
    return ((result.double() - reference_value).norm() / reference_value.norm().clamp(min=1e-30)).item()


@lru_cache(maxsize=64)
def _expected(math: str, case: Case, device: str) -> tuple:
    """Inputs, gradients, results in float64, results of the same type, and what backward gets of forward."""
    inputs = Inputs(*(None if v is None else v.contiguous() for v in make(case, dtype(math), device=device)))
    grads = make_grads(case, dtype(math), device=device)
    references, saved64 = _reference(inputs.to(torch.float64), rounded(grads, torch.float64), case, None)
    saved_dtypes = (inputs.h0.dtype, inputs.c0.dtype, inputs.h0.dtype)
    saved = tuple(v.to(saved_dtype) for v, saved_dtype in zip(saved64, saved_dtypes, strict=True))
    return inputs, grads, references, _reference(inputs, grads, case, saved)[0], saved


def _reference(inputs: Inputs, grads: tuple, case: Case, saved: tuple | None) -> tuple[dict, tuple]:
    with torch.no_grad():
        out = reference.forward(*inputs, case.reverse, 1)
        saved = out[:3] if saved is None else saved
        back = reference.backward(*grads, *inputs, case.reverse, 1, *saved)
    return dict(zip((*FORWARD, *BACKWARD), (*out, *back), strict=True)), saved
