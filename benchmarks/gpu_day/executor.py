"""Where kernels run: a GPU through fastlstm's cuda backend, or (rehearsal) the host simulation with CPU clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from fastlstm.backends import load, native
from fastlstm.backends.base import forced_kernels
from fastlstm.backends.cuda import backend as cuda
from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from fastlstm.backends.cuda import planner as cuda_planner
from fastlstm.backends.cuda import status as cuda_status
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from fastlstm.verify import correctness

MATHS = {"bf16": "bfloat16", "f16": "float16", "tf32": "tf32", "f32": "float32"}  # as rows say it, as fastlstm does
CODES = {"f32": 0, "tf32": 1, "f16": 2, "bf16": 3}  # csrc/cuda/args.h
ALLOWED = {"f32": 2e-5, "tf32": 4e-3, "f16": 4e-3, "bf16": 3e-2}  # relative difference of two right results


def dtype(math: str) -> torch.dtype:
    return correctness.MATHS[MATHS[math]]


class GpuExecutor:
    """A GPU. `lost` holds the stage and key of items that took their process with them."""

    rehearsal, backend = False, "cuda"

    def __init__(self, order: dict[str, Any]) -> None:
        self.out, self.until, self.lost = order["out"], order["until"], [tuple(pair) for pair in order["lost"]]
        self.stage = order["stage"]
        self.begin = order.get("begin", 0.0)  # of the run, as rows have their times
        self.left_out = 0  # parts of items for which there was no time
        self.failed_graphs: list[Any] = []  # graphs whose capture failed
        self.torch_unusable = False  # whether torch of this process can no longer be used
        self.timed_out: set[tuple] = set()  # (kernel, math, backward) that left a status word in this process
        self._open()

    def _open(self) -> None:
        self.device, self.ready = torch.device("cuda", 0), False

    def start(self, warm: bool = True) -> None:
        """Begin to use the device; SystemExit with the reason where it cannot be."""
        if self.ready:
            return
        reason = cuda.not_built() or cuda._wrong_device(self.device)
        if reason:
            raise SystemExit(f"the cuda backend cannot run: {reason}")
        self.lib, self.planner_device, self.ready = native.load().plan, cuda._gpu(0), True
        self.status = cuda_status.words(0)
        if warm:
            self.warm()

    def warm(self) -> None:
        """A fifth of a second of products, so that clocks have risen before anything is timed."""
        a = torch.randn(4096, 4096, device=self.device).to(torch.bfloat16)
        for _ in range(1000):
            a @ a
        self.sync()

    def release_memory(self) -> None:
        """Give back memory that earlier items left, where it is much."""
        if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > 24 << 30:
            torch.cuda.empty_cache()

    def alive(self) -> bool:
        """Whether the device still does what it is told."""
        try:
            torch.cuda.synchronize()
            return torch.ones(2, device=self.device).sum().item() == 2
        except Exception:
            return False

    def recover_capture(self, graph: torch.cuda.CUDAGraph) -> None:
        """After a capture that failed: torch's generator still believes in it and would refuse to draw."""
        self.failed_graphs.append(graph)  # the allocator may still ask it which stream it captured
        try:
            fresh = torch.Generator(self.device)
            torch.cuda.default_generators[0].graphsafe_set_state(fresh.graphsafe_get_state())
            torch.rand(1, device=self.device)
            self.sync()
        except Exception:
            self.torch_unusable = True

    def sync(self) -> None:
        torch.cuda.synchronize()

    def event(self) -> Any:
        return torch.cuda.Event(enable_timing=True)

    def keep_busy(self, us: float) -> None:
        """Keep the GPU busy, so that what is launched next runs without gaps."""
        torch.cuda._sleep(int(us * 1700))

    def runtime(self, tensor: torch.Tensor) -> Any:
        """A `cuda_launch.Runtime` for one call, as a context."""
        return cuda._on(cuda._index(tensor.device), tensor.dtype)

    def force_kernel(self, kernel: str) -> None:
        """From now on module calls use this kernel, backward of them too; "" lets the planner choose."""
        forced_kernels.set({cuda.NAME: kernel})

    def only(self, kernel: str) -> Any:
        """A context in which module calls use this kernel, backward of them too."""
        return load(cuda.NAME).force(kernel)

    def math(self, math: str) -> Any:
        """A context in which float32 is multiplied as `math` says."""
        return correctness.tf32(math == "tf32")

    def take_status(self) -> int:
        """What kernels left in the status words, which are then zero again."""
        self.sync()
        status = int(self.status.max())
        self.status.zero_()
        return status

    # what follows is the same in a rehearsal

    def choose(self, math: str, H: int, B: int, only: str = "", projected: bool = False) -> tuple:
        """The planner's choices for forward and backward; ValueError where `only` cannot run."""
        return cuda_planner.choices(
            self.lib, self.planner_device, CODES[math], H=H, B=B, projected=projected, only=only
        )

    def tilings(self, math: str, H: int, B: int, backward: bool) -> list:
        """Every choice of single_block, cooperative and lean that fits, the cheapest by the cost model first."""
        return cuda_planner.tilings(self.lib, self.planner_device, CODES[math], H=H, B=B, backward=backward)

    def avoid_failed_kernels(self, math: str, H: int, B: int, projected: bool = False) -> str:
        """Use another kernel for module calls whose kernel was lost or timed out with this math; returns what is forced."""
        for only in ("", "cooperative", "per_step"):
            with suppress(ValueError):  # it does not fit
                kernels = [c.kernel for c in self.choose(math, H, B, only=only, projected=projected)]
                if only == "per_step" or not any(self.failed(k, math, bool(back)) for back, k in enumerate(kernels)):
                    self.force_kernel(only)
                    return only
        raise AssertionError("per_step runs every call")

    def failed(self, kernel: str, math: str, backward: bool) -> bool:
        """Whether a kernel took its process with it or timed out with this math."""
        return ("right", f"{kernel} {math}") in self.lost or (kernel, math, backward) in self.timed_out

    def losses(self, key: str) -> int:
        """How often this stage lost its process with a key."""
        return self.lost.count((self.stage, key))

    def out_of_time(self, spare: float = 0.0) -> bool:
        return time.time() > self.until - spare

    def launch_seconds(self, call: Callable[[], Any], times: int) -> list[float]:
        """Seconds of the recurrent launches of a call through `forward` or `backward`, `times` times."""
        seconds = []
        for _ in range(times):
            self.event_pairs = []
            try:
                call()
                self.sync()
                seconds.append(sum(a.elapsed_time(b) for a, b in self.event_pairs) * 1e-3)
                if int(self.status.max()):  # another call would raise; `take_status` tells
                    break
            finally:
                self.event_pairs = None
        return seconds

    event_pairs: list[tuple] | None = None  # of events around launches, while they are timed

    def forward(self, plan: cuda_launch.LaunchPlan, inputs: tuple, reverse: bool = False, save: int = 1) -> tuple:
        """One call of the op's forward with a choice of one's own, on contiguous tensors."""
        with self.runtime(inputs[4]) as rt:
            return cuda_launch.forward(self._timed_runtime(rt), plan, OpInputs(*inputs, reverse, save))

    def backward(
        self, plan: cuda_launch.LaunchPlan, grads: tuple, inputs: tuple, saved: tuple, reverse: bool = False
    ) -> tuple:
        with self.runtime(inputs[4]) as rt:
            arguments = OpInputs(*inputs, reverse, 1), Saved(*saved), Grads(*grads)
            return launch_backward.backward(self._timed_runtime(rt), plan, *arguments)

    def _timed_runtime(self, rt: Any) -> Any:
        if self.event_pairs is not None:
            rt.lib = TimedLaunchers(rt.lib, self)
        return rt


class TimedLaunchers:
    """The native launchers, with events around the recurrent ones (and the fill that comes with a cooperative one)."""

    def __init__(self, lib: Any, executor: GpuExecutor) -> None:
        self._lib, self._executor = lib, executor

    def __getattr__(self, name: str) -> Any:
        launch = getattr(self._lib, name)
        if name.startswith("per_step") or not name.endswith(("_forward", "_backward")):
            return launch

        def timed(*args: Any) -> None:
            begin, end = self._executor.event(), self._executor.event()
            self._executor.keep_busy(80)
            begin.record()
            launch(*args)
            end.record()
            self._executor.event_pairs.append((begin, end))

        return timed


class CpuEvent:
    """What stands for a CUDA event in a rehearsal: the time of the CPU's clock."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: CpuEvent) -> float:
        return (other.at - self.at) * 1e3

    def synchronize(self) -> None:
        pass


class SimulatedExecutor(GpuExecutor):
    """The host simulation: kernels run thread by thread on the CPU."""

    rehearsal, backend = True, "hostsim"

    def _open(self) -> None:
        from tests.hostsim import backend  # registers it; no folder without tests/ needs it until it rehearses

        self.hostsim = backend
        self.device, self.ready = torch.device("cpu"), False

    def start(self, warm: bool = True) -> None:
        if self.ready:
            return
        self.module = self.hostsim.library()
        self.lib, self.planner_device, self.ready = self.module.plan, self.hostsim._device(), True
        self.status = self.hostsim._status

    def warm(self) -> None:
        pass

    def release_memory(self) -> None:
        pass

    def alive(self) -> bool:
        return True

    def sync(self) -> None:
        pass

    def event(self) -> CpuEvent:
        return CpuEvent()

    def keep_busy(self, us: float) -> None:
        pass

    def runtime(self, tensor: torch.Tensor) -> Any:
        return self.hostsim.Simulated(self.module)

    def force_kernel(self, kernel: str) -> None:
        self.hostsim._settings = replace(self.hostsim._settings, kernel=kernel or None)

    def only(self, kernel: str) -> Any:
        return self.hostsim.settings(kernel=kernel)

    @contextmanager
    def math(self, math: str) -> Iterator[None]:
        with correctness.tf32(math == "tf32"), self.hostsim.settings(tf32=math == "tf32"):
            yield


def executor_for(order: dict[str, Any]) -> GpuExecutor:
    """The executor that an order asks for."""
    return (SimulatedExecutor if order["rehearse"] else GpuExecutor)(order)


def number_attributes(source: Any) -> dict[str, float]:
    """The numbers of a tiling or of its work, by name."""
    numbers = {}
    for name in dir(source):
        value = None if name.startswith("_") else getattr(source, name)
        if isinstance(value, (int, float)):
            numbers[name] = value
    return numbers


def choice_columns(choice: Any) -> dict[str, Any]:
    """A planner's choice as columns of a row."""
    blocks = {"blocks": choice.blocks, "threads": choice.threads, "shared_bytes": choice.shared_bytes}
    model = {"work": number_attributes(choice.work), "predicted_us": choice.us, "bound": choice.bound}
    return {"kernel": choice.kernel, "tiling": number_attributes(choice.t), **blocks, **model}
