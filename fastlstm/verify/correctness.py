"""Runs the table of cases through every kernel of a GPU backend and compares what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import groupby, product

import torch

from fastlstm import backends
from fastlstm.backends import blocklist
from fastlstm.backends.base import Backend
from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.ops.arguments import Spec
from fastlstm.testing import accuracy, decoding, layers
from fastlstm.testing.cases import FULL, SHORT, Case
from fastlstm.verify.stages import Started

MATHS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYERS = "lean_layers"  # a kernel of several layers in one launch, checked as such
DECODE = "decode"  # the sampling loop, not a kernel of the op: it has cases of its own, in float32
DRAWS = 3  # an error above what is allowed counts when that many draws of a case all have one


def _sized(T: int, B: int, I: int, H: int, **on: object) -> Case:
    words = "-".join(name for name, value in on.items() if value is True)
    return Case(f"T{T}B{B}I{I}H{H}-{words or 'plain'}", T, B, I, H, H, **on)


# Sizes that spread W_hh over many blocks; odd ones, and the ones that people use
LARGE = [
    _sized(9, 33, 40, 300, reset=True),
    _sized(8, 16, 64, 512),
    _sized(6, 3, 64, 1024, reverse=True),
    _sized(5, 130, 16, 129, initial=False),
    _sized(4, 80, 16, 1024, initial=False),  # several passes and parts of the gates in the CUDA kernel lean
]
LONG = [_sized(66_000, 1, 2, 8)]  # no 16-bit counter of steps
# What Triton's planner has other tiles for than for the other cases; the last two: more blocks of the smallest tile than a
# GPU has multiprocessors
TILES = [_sized(3, 5, 4, 30), _sized(3, 130, 16, 520), _sized(2, 3300, 8, 136)]
# What fits one multiprocessor, in few layouts: each is compiled for itself, two seconds a kernel
FEW = [
    _sized(7, 5, 3, 60),
    Case(
        "T7B3V5H60-packed-reverse-reset-ids",
        7,
        3,
        0,
        60,
        60,
        V=5,
        lengths=(7, 4, 6),
        reverse=True,
        reset=True,
        ids=True,
    ),
    _sized(5, 17, 16, 128),
]


@dataclass(frozen=True)
class Table:
    """What is run: cases, how numbers are multiplied, ways to save for backward, and kernels; none: all of a backend."""

    cases: tuple[Case, ...]
    maths: tuple[str, ...] = tuple(MATHS)
    saves: tuple[int, ...] = (1,)
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseRun:
    """One case through one kernel."""

    kernel: str
    math: str
    case: Case | decoding.DecodeCase
    save: int


class Verdict(Enum):
    """What a run showed: a right result, a wrong one, none because of an error, or nothing: the kernel takes no such case."""

    PASSED = "passed"
    WRONG = "wrong"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    reason: of a verdict other than PASSED. ratios: the worst error as a share of what is allowed, of each draw of the case
    (one where the first is right). fatal: the device failed or the kernel never ended (hung), so that nothing more is to
    run in this process.
    """

    backend: str
    kernel: str
    math: str
    case: str
    verdict: Verdict
    reason: str = ""
    ratios: tuple[float, ...] = ()
    fatal: bool = False
    hung: bool = False


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether cuDNN's LSTM, and so ours, may multiply float32 as TF32 inside a `with` block."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def runs(backend: str, table: Table) -> tuple[CaseRun, ...]:
    """All runs of a table. Those of a case and type are side by side: they share its reference."""
    names = table.kernels or backends.load(backend).kernel_names
    order = sorted(table.maths, key=lambda math: list(MATHS.values()).index(MATHS[math]))
    of_op = (
        CaseRun(kernel, math, case, save)
        for _, of_type in groupby(order, MATHS.__getitem__)
        for case, math, kernel, save in product(table.cases, list(of_type), names, table.saves)
    )
    draws = backends.load(backend).decodes and not table.kernels
    return (*of_op, *(CaseRun(DECODE, "float32", case, 0) for case in decoding.CASES if draws))


def run(case_runs: tuple[CaseRun, ...], backend: str, device: torch.device) -> Iterator[Started | Outcome]:
    """Do the runs one after the other, whatever an earlier record says. After a fatal outcome it ends."""
    loaded = backends.load(backend)
    with blocklist.override_record(()):
        for index, case_run in enumerate(case_runs):
            yield Started(index)
            outcome = outcome_of(loaded, case_run, device)
            yield outcome
            if outcome.fatal:
                return


def outcome_of(backend: Backend, case_run: CaseRun, device: torch.device) -> Outcome:
    """Do one run."""
    labels = (backend.name, case_run.kernel, case_run.math, case_run.case.id)
    try:
        with backend.force("" if case_run.kernel == DECODE else case_run.kernel), tf32(case_run.math == "tf32"):
            reason = _reason_to_skip(backend, case_run, device)
            if reason is not None:
                return Outcome(*labels, Verdict.SKIPPED, reason)
            wrong, ratios = _compare(backend, case_run, device)
    except accuracy.WrongResultError as error:
        return Outcome(*labels, Verdict.WRONG, one_line(error), **_pending_flags(backend, device))
    except Exception as error:  # whatever a driver, a compiler or a kernel brings is a failure of this kernel
        flags = _flags(error) if is_fatal(error) else _pending_flags(backend, device)
        return Outcome(*labels, Verdict.FAILED, one_line(error), **flags)
    return Outcome(*labels, Verdict.WRONG if wrong else Verdict.PASSED, wrong, ratios)


def _reason_to_skip(backend: Backend, case_run: CaseRun, device: torch.device) -> str | None:
    if isinstance(case_run.case, decoding.DecodeCase):
        return decoding.unfit(backend, case_run.case, device)
    spec = _spec(case_run.case, MATHS[case_run.math], case_run.save, device)
    reason = backend.unsupported_reason(spec)
    if reason is None and case_run.kernel == LAYERS and _together(backend, spec) < 2:
        return "no launch of several layers fits"
    return reason


def _pending_flags(backend: Backend, device: torch.device) -> dict[str, bool]:
    """What a failed run left for a later call to raise: it is this run's, not the next one's."""
    error = pending_error(device, backend)
    return {} if error is None else _flags(error)


def pending_error(device: torch.device, *used: Backend) -> Exception | None:
    """Ask a device, and the backends that ran on it, after an error that does not say that the device failed.

    Not every library says so in its message; a device that failed raises in whatever waits for it.
    """
    try:
        for backend in used:
            backend.check(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:
        return error
    return None


def _flags(error: Exception) -> dict[str, bool]:
    return {"fatal": is_fatal(error), "hung": isinstance(error, GaveUpError)}


# of torch and, through backends/cuda/backend.py, of our launchers; of Triton
_FATAL_WORDS = ("CUDA error", "Triton Error [CUDA]")


def is_fatal(error: Exception) -> bool:
    """Whether nothing more is to run in a process in which this happened."""
    told = any(words in str(error) for words in _FATAL_WORDS) or "AcceleratorError" in type(error).__name__
    return told or isinstance(error, GaveUpError)


def one_line(error: Exception) -> str:
    """An error in one line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _compare(backend: Backend, case_run: CaseRun, device: torch.device) -> tuple[str, tuple[float, ...]]:
    """What is wrong with a case, or nothing, and the worst error as a share of what is allowed, draw by draw.

    The baseline is torch's error on the same numbers, and now and then that is a small one: only what is too much in
    DRAWS draws is wrong.
    """
    ratios, wrong, options = [], "", {"save": case_run.save, "device": device, "tf32": case_run.math == "tf32"}
    for draw in range(DRAWS):
        if case_run.kernel == DECODE:
            errors = decoding.errors(backend, case_run.case, 1000 * draw, device)
        else:
            of = _layer_errors if case_run.kernel == LAYERS else accuracy.errors
            errors = of(backend, case_run.case, MATHS[case_run.math], seed=1000 * draw, **options)
        backend.check(device)
        name, (measured, allowed) = max(errors.items(), key=lambda item: _ratio(*item[1]))
        ratios.append(_ratio(measured, allowed))
        if ratios[-1] <= 1:
            return "", tuple(ratios)
        wrong = f"{name}: relative error {measured:.3g}, allowed {allowed:.3g}"
        if ratios[-1] == float("inf"):  # NaN, say: no matter of luck
            break
    return wrong, tuple(ratios)


def _together(backend: Backend, spec: Spec) -> int:
    """How many layers one launch takes, up to three; at least that many directions it takes too."""
    return backend.layers_together(spec, 3, chained=True)


def _layer_errors(backend: Backend, case: Case, dtype: torch.dtype, *, save: int, device: torch.device, **how) -> dict:
    """The errors of a launch of layers and of one of both directions, forward and backward."""
    count = _together(backend, _spec(case, dtype, save, device))
    of = {"save": save, "device": device, **how}
    found = layers.errors(backend, case, dtype, count=count, chained=True, **of)
    sides = layers.errors(backend, case, dtype, count=2, chained=False, **of)
    return {**found, **{f"directions {name}": error for name, error in sides.items()}}


def _ratio(measured: float, allowed: float) -> float:
    """An error as a share of what is allowed; infinity for NaN."""
    return measured / allowed if measured <= 1e30 else float("inf")


def _spec(case: Case, dtype: torch.dtype, save: int, device: torch.device) -> Spec:
    flags = (case.packed, case.ids, case.projection, case.reverse, case.reset)
    sizes = (case.T, case.B, case.N, case.I, case.V, case.H, case.P)
    return Spec(device, dtype, *sizes, *flags, save)


QUICK = Table((*SHORT, *LARGE))
QUICK_TRITON = Table(tuple(FEW), kernels=("single_block",))
WHOLE = Table((*FULL, *FEW, *LARGE, *LONG, *TILES), saves=(1, 2))
