"""Times kernels and backends for a call beside torch's own path: the same module call, interleaved, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastlstm
from fastlstm import backends, dispatch
from fastlstm.backends import blocklist
from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.ops.arguments import Spec
from fastlstm.verify import cudnn
from fastlstm.verify.correctness import MATHS, line_of, ruins, tf32
from fastlstm.verify.stages import Started

ROUNDS = 7
ORDER = ("tf32", "bfloat16", "float16", "float32")  # the types that most calls have first, should time run out
Clock = Callable[[], float]
Kernel = tuple[str, str, str]  # backend, kernel, math


@dataclass(frozen=True)
class GridPoint:
    """One size and kind of call. layout: dense, packed (lengths T … T / 4) or projected (to H / 2); I = H."""

    layout: str
    math: str
    training: bool
    H: int
    B: int
    T: int

    def __str__(self) -> str:
        return (
            f"{self.layout} {self.math} {'training' if self.training else 'inference'} H {self.H} B {self.B} T {self.T}"
        )


def grid(layout: str, H: tuple[int, ...], B: tuple[int, ...], T: tuple[int, ...], maths=ORDER) -> list[GridPoint]:
    """All cells of a layout over these sizes."""
    return [GridPoint(layout, *rest) for rest in product(maths, (True, False), H, B, T)]


@dataclass(frozen=True)
class Fault:
    """A kernel did not end, or ruined the process, or raised what it should not, while a cell was timed."""

    kernels: tuple[Kernel, ...]
    cell: GridPoint
    why: str
    dead: bool


@dataclass(frozen=True)
class Contender:
    """One way to run a cell. kernels: what it runs of ours (none: torch's own path)."""

    name: str
    step: Callable[[], None]
    kernels: tuple[Kernel, ...] = ()


Calls = Callable[[Contender], None]


class DeviceClock:
    """Seconds now, once the device has done all that it was given. Pickles, unlike a lambda."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def run(
    cells: tuple[GridPoint, ...], passed: frozenset[Kernel], device: torch.device, clock: Clock
) -> Iterator[Started | Fault | dict]:
    """Time every cell.

    passed: the kernels that may run. Yields the rows of a record (record.py says what they hold), a `Fault` where a kernel
    is not to be used any more, and a `Started` before each turn of a contender, with its name and kernels: whatever ends
    this process then is theirs. After a `Fault` that leaves the process of no use it ends; that cell has no row.
    """
    out: set[Kernel] = set()
    for index, cell in enumerate(cells):
        yield Started(index)
        torch.manual_seed(0)
        with tf32(cell.math == "tf32"), blocklist.override_record(_others(passed - out)):
            timed = Timed(cell, device)
            for contender, calls in timed.turns(passed - out, clock):
                yield Started(index, contender.name, contender.kernels)  # 50 µs for the pipe, outside of what is timed
                fault = timed.turn(contender, calls)
                if fault is not None:
                    out.update(fault.kernels)
                    yield fault
                    if fault.dead:
                        return
            yield Started(index)
            yield timed.row()


def _others(passed: frozenset[Kernel]) -> frozenset[Kernel]:
    """Every kernel of the backends that is not among these."""
    names = {name for name, _, _ in passed}
    all_of = {(name, kernel, math) for name in names for kernel in backends.load(name).kernel_names for math in MATHS}
    return frozenset(all_of - passed)


@dataclass
class Timed:
    """One cell: its modules, the contenders that have not failed, and the seconds of their calls by name."""

    cell: GridPoint
    device: torch.device
    ready: list[Contender] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    planned: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def contenders(self, passed: frozenset[Kernel]) -> list[Contender]:
        """Torch's own path, every kernel that can run the cell, and a backend as planned where that is none of them."""
        theirs, ours, x = _modules(self.cell, self.device)
        spec, training = _spec(self.cell, self.device), self.cell.training
        found = [Contender("torch", partial(_call, theirs, x, training))]
        for name in dict.fromkeys(backend for backend, _, _ in sorted(passed)):
            loaded = backends.load(name)
            for kernel in loaded.kernel_names:
                used = (name, kernel, self.cell.math)
                if used not in passed:
                    continue
                with _forced(name, kernel):
                    if dispatch.unsupported_reason(name, spec) is not None:
                        continue
                found.append(Contender(f"{name}:{kernel}", partial(_run, name, kernel, ours, x, training), (used,)))
            if dispatch.unsupported_reason(name, spec) is None:
                self.planned[name] = loaded.kernels(spec)
                used = tuple((name, kernel, self.cell.math) for kernel in dict.fromkeys(self.planned[name]))
                if len(used) > 1:  # forward and backward differ
                    found.append(Contender(name, partial(_run, name, "", ours, x, training), used))
        return found

    def turns(self, passed: frozenset[Kernel], clock: Clock) -> Iterator[tuple[Contender, Calls]]:
        """Whose turn it is, and what to do: all begin, then those that are left are timed ROUNDS times, interleaved."""
        self.ready = self.contenders(passed)
        for calls in (self._begin, *[partial(self._time, clock)] * ROUNDS):
            for contender in tuple(self.ready):
                if contender in self.ready:  # no fault of this round has taken it out
                    yield contender, calls

    def _begin(self, contender: Contender) -> None:
        """The first two calls (the first compiles), until the device has done them."""
        contender.step(), contender.step()
        DeviceClock(self.device)()

    def _time(self, clock: Clock, contender: Contender) -> None:
        """One call that counts."""
        start = clock()
        contender.step()
        self.samples.setdefault(contender.name, []).append(clock() - start)

    def turn(self, contender: Contender, calls: Calls) -> Fault | None:
        """Do the calls and ask the device. A contender that fails has no more turns; what ours must not do is a fault."""
        try:
            calls(contender)
            for name in {name for name, _, _ in contender.kernels}:
                backends.load(name).check(self.device)
        except torch.cuda.OutOfMemoryError:
            self.ready.remove(contender)
        except Exception as error:
            fault = Fault(_to_blame(error, contender), self.cell, line_of(error), ruins(error))
            self.ready = [c for c in self.ready if c != contender and not {*c.kernels} & {*fault.kernels}]
            return fault if fault.kernels or fault.dead else None  # else cuDNN without such a kernel
        return None

    def row(self) -> dict:
        """Median seconds of one call of everything that is left, as a row of the record."""
        seconds, by_kernel = {}, {}
        for contender in self.ready:
            median = statistics.median(self.samples[contender.name])
            if len(contender.kernels) == 1:
                name, kernel, _ = contender.kernels[0]
                by_kernel.setdefault(name, {})[kernel] = median
            else:
                seconds[contender.name] = median
        for name, used in self.planned.items():  # as planned, that is one of the kernels already timed
            if len(set(used)) == 1 and used[0] in by_kernel.get(name, {}):
                seconds[name] = by_kernel[name][used[0]]
        row = {**asdict(self.cell), "seconds": seconds, "kernels": by_kernel, "cudnn": _algorithm(self.cell)}
        return {**row, "planned": {name: list(used) for name, used in self.planned.items()}}


def _to_blame(error: Exception, contender: Contender) -> tuple[Kernel, ...]:
    """The kernels of the contender in whose turn an error came, or the one that left it there in an earlier turn."""
    if isinstance(error, GaveUpError) and error.math:
        return (("cuda", error.kernel, error.math),)
    return contender.kernels


def _algorithm(cell: GridPoint) -> str:
    packed, projected = cell.layout == "packed", cell.layout == "projected"
    return cudnn.algorithm(cell.math, cell.H, cell.H, cell.B, 1, False, packed, projected, cell.training)


def _spec(cell: GridPoint, device: torch.device) -> Spec:
    """The cell's call, as backends see it."""
    projected, packed = cell.layout == "projected", cell.layout == "packed"
    N = int(_lengths(cell).sum()) if packed else cell.T * cell.B
    sizes = (cell.T, cell.B, N, cell.H, 0, cell.H, cell.H // 2 if projected else cell.H)
    flags = (packed, False, projected, False, False)
    return Spec(device, MATHS[cell.math], *sizes, *flags, int(cell.training))


def _lengths(cell: GridPoint) -> Tensor:
    return torch.linspace(cell.T, max(1, cell.T // 4), cell.B).long()


def _modules(cell: GridPoint, device: torch.device) -> tuple[nn.Module, nn.Module, Tensor | PackedSequence]:
    """nn.LSTM, ours with the same weights, and the input."""
    P, kind = cell.H // 2 if cell.layout == "projected" else 0, {"device": device, "dtype": MATHS[cell.math]}
    theirs = nn.LSTM(cell.H, cell.H, proj_size=P, **kind)
    ours = fastlstm.LSTM(cell.H, cell.H, proj_size=P, **kind)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(cell.T, cell.B, cell.H, **kind, requires_grad=cell.training)
    if cell.layout == "packed":
        x = nn.utils.rnn.pack_padded_sequence(x, _lengths(cell))
    return theirs, ours, x


def _forced(name: str, kernel: str) -> AbstractContextManager:
    return backends.load(name).force(kernel)


def _run(name: str, kernel: str, module: nn.Module, x: Tensor | PackedSequence, training: bool) -> None:
    with fastlstm.backend(name), _forced(name, kernel):
        _call(module, x, training)


def _call(module: nn.Module, x: Tensor | PackedSequence, training: bool) -> None:
    """Forward, or forward and backward into weights and input.

    Backward stays on this thread: in autograd's own a forced kernel would not hold.
    """
    if not training:
        with torch.no_grad():
            module(x)
        return
    out = module(x)[0]
    out = out.data if isinstance(out, PackedSequence) else out
    leaf = x.data if isinstance(x, PackedSequence) else x
    with torch.autograd.set_multithreading_enabled(False):
        torch.autograd.grad(out, [leaf, *module.parameters()], torch.ones_like(out))


CELLS = (
    *grid("dense", (16, 64, 128, 256, 512, 1024), (1, 16, 64, 256), (4, 128)),
    *grid("packed", (128, 256, 512), (16, 64), (64,)),
    *grid("projected", (256, 512, 1024), (16, 64), (64,)),
)
CELLS_TRITON = (  # the layouts and padded sizes of correctness.QUICK_TRITON
    *grid("dense", (64, 128), (16, 64), (4, 128)),
    *grid("packed", (64, 128), (16, 64), (64,)),
)
