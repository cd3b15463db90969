"""Runs the table of cases through every kernel of a GPU backend and judges what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType

import torch

from fastlstm import backends
from fastlstm.backends.common import spec_of
from fastlstm.verify import judge
from fastlstm.verify.cases import FULL, SHORT, Case, make

MATHS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _sized(T: int, B: int, I: int, H: int, **on: object) -> Case:
    words = "-".join(name for name, value in on.items() if value is True)
    return Case(f"T{T}B{B}I{I}H{H}-{words or 'plain'}", T, B, I, H, H, **on)


# Sizes that spread W_hh over many blocks; odd ones, and the ones that people use
LARGE = [
    _sized(9, 33, 40, 300, reset=True),
    _sized(8, 16, 64, 512),
    _sized(6, 3, 64, 1024, reverse=True),
    _sized(5, 130, 16, 129, initial=False),
]
LONG = [_sized(66_000, 1, 2, 8)]


@dataclass(frozen=True)
class Table:
    """What is run: cases, how numbers are multiplied, and which of the op's ways to save for backward."""

    cases: tuple[Case, ...]
    maths: tuple[str, ...] = tuple(MATHS)
    saves: tuple[int, ...] = (1,)


QUICK = Table((*SHORT, *LARGE))
WHOLE = Table((*FULL, *LARGE, *LONG), saves=(1, 2))


@dataclass(frozen=True)
class Outcome:
    """One case through one kernel. wrong: what is wrong with it; skipped: why the kernel does not take it."""

    backend: str
    kernel: str
    math: str
    case: str
    wrong: str = ""
    skipped: str = ""


def kernels(module: ModuleType) -> tuple[str, ...]:
    """The kernels of a backend that can be forced by name; one nameless where there is no such choice."""
    return getattr(module, "KERNELS", ("",))


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether cuDNN's LSTM, and so ours, may multiply float32 as TF32 inside a `with` block."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def run(backend: str, device: torch.device, table: Table) -> Iterator[Outcome]:
    """Run a backend's kernels over the table. After a device error nothing more can run there, so it ends with that."""
    module = backends.load(backend)
    for math in table.maths:
        for case in table.cases:
            for kernel in kernels(module):
                for save in table.saves:
                    with tf32(math == "tf32"):
                        outcome, dead = _one(module, kernel, math, case, save, device)
                    yield outcome
                    if dead:
                        return


def _one(
    module: ModuleType, kernel: str, math: str, case: Case, save: int, device: torch.device
) -> tuple[Outcome, bool]:
    """The outcome of one run, and whether the device is of no more use."""
    what = (module.NAME, kernel, math, case.id)
    force: AbstractContextManager = module.force(kernel) if kernel else nullcontext()
    with force:
        reason = _why_not(module, case, MATHS[math], save, device)
        if reason is not None:
            return Outcome(*what, skipped=reason), False
        try:
            judge.check_backend(module, case, MATHS[math], save=save, device=device, tf32=math == "tf32")
        except AssertionError as error:
            return Outcome(*what, wrong=str(error)), False
        except Exception as error:  # whatever a driver, a compiler or a kernel brings is a failure of this backend
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return Outcome(*what, wrong=text), "CUDA error" in text or "AcceleratorError" in text
    return Outcome(*what), False


def _why_not(module: ModuleType, case: Case, dtype: torch.dtype, save: int, device: torch.device) -> str | None:
    v = make(case, dtype, device=device)
    return module.why_not(spec_of(v.x, v.ids, v.w_x, v.w_hh, v.w_hr, v.h0, v.batch_sizes, v.reset, case.reverse, save))
