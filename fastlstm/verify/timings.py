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
from fastlstm.backends.blocklist import KernelKey
from fastlstm.backends.cuda.status import GaveUpError
from fastlstm.ops.arguments import Spec
from fastlstm.verify import cudnn
from fastlstm.verify.correctness import MATHS, is_fatal, one_line, pending_error, tf32
from fastlstm.verify.stages import Started

ROUNDS = 7
ORDER = ("tf32", "bfloat16", "float16", "float32")  # the types that most calls have first, should time run out
ClockFunction = Callable[[], float]


@dataclass(frozen=True)
class TimingPoint:
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


def grid(layout: str, H: tuple[int, ...], B: tuple[int, ...], T: tuple[int, ...], maths=ORDER) -> list[TimingPoint]:
    """All points of a layout over these sizes."""
    return [TimingPoint(layout, *rest) for rest in product(maths, (True, False), H, B, T)]


@dataclass(frozen=True)
class Fault:
    """A kernel hung, crashed the process or raised what it should not while a point was timed.

    fatal: nothing more is to run in this process.
    """

    kernels: tuple[KernelKey, ...]
    point: TimingPoint
    reason: str
    fatal: bool


@dataclass(frozen=True)
class Contender:
    """One way to run a point. kernels: those of fastlstm that it runs (none: torch's own path)."""

    name: str
    step: Callable[[], None]
    kernels: tuple[KernelKey, ...] = ()


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
    points: tuple[TimingPoint, ...], passed: frozenset[KernelKey], device: torch.device, clock: ClockFunction
) -> Iterator[Started | Fault | dict]:
    """Time every point.

    passed: the kernels that may run. Yields the rows of a record (record.py says what they hold), a `Fault` where a kernel
    is not to be used any more, and a `Started` before each turn of a contender, with its name and kernels: whatever ends
    this process then is the fault of those kernels. After a fatal `Fault` it ends; that point has no row.
    """
    excluded: set[KernelKey] = set()
    for index, point in enumerate(points):
        yield Started(index)
        torch.manual_seed(0)
        with tf32(point.math == "tf32"), blocklist.override_record(_other_kernels(passed - excluded)):
            timed = PointTiming(point, device)
            for fault in timed.prepare(passed - excluded):
                excluded.update(fault.kernels)
                yield fault
                if fault.fatal:
                    return
            for contender, calls in timed.turns(clock):
                yield Started(index, contender.name, contender.kernels)  # 50 µs for the pipe, outside of what is timed
                fault = timed.turn(contender, calls)
                if fault is not None:
                    excluded.update(fault.kernels)
                    yield fault
                    if fault.fatal:
                        return
            yield Started(index)
            yield timed.row()


def _other_kernels(passed: frozenset[KernelKey]) -> frozenset[KernelKey]:
    """Every kernel of the backends that is not among these."""
    names = {name for name, _, _ in passed}
    all_of = {(name, kernel, math) for name in names for kernel in backends.load(name).kernel_names for math in MATHS}
    return frozenset(all_of - passed)


@dataclass
class PointTiming:
    """The timing of one point: its modules, the contenders that have not failed, and the seconds of their calls by name."""

    point: TimingPoint
    device: torch.device
    active: list[Contender] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    planned: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def prepare(self, passed: frozenset[KernelKey]) -> Iterator[Fault]:
        """Collect torch's own path, every kernel that can run the point, and a backend as planned where that is none of them.

        Yields a fault of each kernel that raises when it is asked whether it can.
        """
        torch_lstm, lstm, x = _modules(self.point, self.device)
        training = self.point.training
        self.active = [Contender("torch", partial(_call, torch_lstm, x, training))]
        for name in dict.fromkeys(backend for backend, _, _ in sorted(passed)):
            keys = [(name, kernel, self.point.math) for kernel in backends.load(name).kernel_names]
            candidates = [*((f"{name}:{key[1]}", key[1], (key,)) for key in keys if key in passed), (name, "", ())]
            for title, kernel, used in candidates:
                try:
                    used = self._plan(name, kernel, used)
                except Exception as error:
                    fault = self._fault(error, used or tuple(key for key in keys if key in passed))
                    self.active = [c for c in self.active if not {*c.kernels} & {*fault.kernels}]
                    yield fault
                    continue
                if used:
                    self.active.append(Contender(title, partial(_run, name, kernel, lstm, x, training), used))

    def _plan(self, name: str, kernel: str, used: tuple[KernelKey, ...]) -> tuple[KernelKey, ...]:
        """The kernels that a contender runs at the point: `used`, or without any those of the plan, where they are two.

        None where the backend cannot run it.
        """
        spec = _spec(self.point, self.device)
        with _forced(name, kernel):
            if dispatch.unsupported_reason(name, spec) is not None:
                return ()
        if used:
            return used
        self.planned[name] = backends.load(name).kernels(spec)
        both = tuple((name, planned, self.point.math) for planned in dict.fromkeys(self.planned[name]))
        return both if len(both) > 1 else ()  # forward and backward differ

    def turns(self, clock: ClockFunction) -> Iterator[tuple[Contender, Calls]]:
        """Whose turn it is, and what to do: all begin, then those that are left are timed ROUNDS times, interleaved."""
        for calls in (self._begin, *[partial(self._time, clock)] * ROUNDS):
            for contender in tuple(self.active):
                if contender in self.active:  # no fault of this round has removed it
                    yield contender, calls

    def _begin(self, contender: Contender) -> None:
        """The first two calls (the first compiles), until the device has done them."""
        contender.step(), contender.step()
        DeviceClock(self.device)()

    def _time(self, clock: ClockFunction, contender: Contender) -> None:
        """One call that counts."""
        start = clock()
        contender.step()
        self.samples.setdefault(contender.name, []).append(clock() - start)

    def turn(self, contender: Contender, calls: Calls) -> Fault | None:
        """Do the calls and ask the device. A contender that fails has no more turns; a failure of fastlstm's is a fault."""
        try:
            calls(contender)
            for name in {name for name, _, _ in contender.kernels}:
                backends.load(name).check(self.device)
        except torch.cuda.OutOfMemoryError:
            self.active.remove(contender)
        except Exception as error:
            fault = self._fault(error, contender.kernels)
            self.active = [c for c in self.active if c != contender and not {*c.kernels} & {*fault.kernels}]
            return fault if fault.kernels or fault.fatal else None  # else cuDNN without such a kernel
        return None

    def _fault(self, error: Exception, kernels: tuple[KernelKey, ...]) -> Fault:
        """A fault of these kernels, or of the one that left the error there in an earlier turn."""
        if isinstance(error, GaveUpError) and error.math:
            kernels = (("cuda", error.kernel, error.math),)
        return Fault(kernels, self.point, one_line(error), is_fatal(error) or pending_error(self.device) is not None)

    def row(self) -> dict:
        """Median seconds of one call of everything that is left, as a row of the record."""
        seconds, by_kernel = {}, {}
        for contender in self.active:
            median = statistics.median(self.samples[contender.name])
            if len(contender.kernels) == 1:
                name, kernel, _ = contender.kernels[0]
                by_kernel.setdefault(name, {})[kernel] = median
            else:
                seconds[contender.name] = median
        for name, used in self.planned.items():  # as planned, that is one of the kernels already timed
            if len(set(used)) == 1 and used[0] in by_kernel.get(name, {}):
                seconds[name] = by_kernel[name][used[0]]
        row = {**asdict(self.point), "seconds": seconds, "kernels": by_kernel, "cudnn": _algorithm(self.point)}
        return {**row, "planned": {name: list(used) for name, used in self.planned.items()}}


def _algorithm(point: TimingPoint) -> str:
    packed, projected = point.layout == "packed", point.layout == "projected"
    return cudnn.algorithm(point.math, point.H, point.H, point.B, 1, False, packed, projected, point.training)


def _spec(point: TimingPoint, device: torch.device) -> Spec:
    """The point's call, as backends see it."""
    projected, packed = point.layout == "projected", point.layout == "packed"
    N = int(_lengths(point).sum()) if packed else point.T * point.B
    sizes = (point.T, point.B, N, point.H, 0, point.H, point.H // 2 if projected else point.H)
    flags = (packed, False, projected, False, False)
    return Spec(device, MATHS[point.math], *sizes, *flags, int(point.training))


def _lengths(point: TimingPoint) -> Tensor:
    return torch.linspace(point.T, max(1, point.T // 4), point.B, dtype=torch.float32, device="cpu").long()


def _modules(point: TimingPoint, device: torch.device) -> tuple[nn.Module, nn.Module, Tensor | PackedSequence]:
    """nn.LSTM, fastlstm.LSTM with the same weights, and the input."""
    P, factory = point.H // 2 if point.layout == "projected" else 0, {"device": device, "dtype": MATHS[point.math]}
    torch_lstm = nn.LSTM(point.H, point.H, proj_size=P, **factory)
    lstm = fastlstm.LSTM(point.H, point.H, proj_size=P, **factory)
    lstm.load_state_dict(torch_lstm.state_dict())
    x = torch.randn(point.T, point.B, point.H, **factory, requires_grad=point.training)
    if point.layout == "packed":
        x = nn.utils.rnn.pack_padded_sequence(x, _lengths(point))
    return torch_lstm, lstm, x


def _forced(name: str, kernel: str) -> AbstractContextManager:
    return backends.load(name).force(kernel)


def _run(name: str, kernel: str, module: nn.Module, x: Tensor | PackedSequence, training: bool) -> None:
    with fastlstm.backend(name), _forced(name, kernel):
        _call(module, x, training)


def _call(module: nn.Module, x: Tensor | PackedSequence, training: bool) -> None:
    """Forward, or forward and backward into weights and input."""
    if not training:
        with torch.no_grad():
            module(x)
        return
    out = module(x)[0]
    out = out.data if isinstance(out, PackedSequence) else out
    leaf = x.data if isinstance(x, PackedSequence) else x
    torch.autograd.grad(out, [leaf, *module.parameters()], torch.ones_like(out))


POINTS = (
    *grid("dense", (16, 64, 128, 256, 512, 1024), (1, 16, 64, 256), (4, 128)),
    *grid("packed", (128, 256, 512), (16, 64), (64,)),
    *grid("projected", (256, 512, 1024), (16, 64), (64,)),
)
POINTS_TRITON = (  # the layouts and padded sizes of correctness.QUICK_TRITON
    *grid("dense", (64, 128), (16, 64), (4, 128)),
    *grid("packed", (64, 128), (16, 64), (64,)),
)
