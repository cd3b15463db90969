"""The processes of a run: one, or several started by torchrun, each with its part of the streams.

A thin layer on torch.distributed; with one process every method returns at once.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CharLMError, count
from ..model import find_device

T = TypeVar("T")


class Ranks:
    """The processes of a run.

    Attributes:
        rank: number of this process
        size: number of processes
        device: that this process computes on
    """

    def __init__(self, device: str = "auto"):
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if self.size > 1 and not dist.is_initialized():
            # Import it before the group exists: its functions take the group of the time of import as a default
            # argument and would keep it alive. DistributedDataParallel imports it later.
            import torch.distributed.nn  # noqa: F401

            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        """True in the process that writes files and reports."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: it averages gradients over the processes."""
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values).div_(self.size) if self.size > 1 else values

    def gather(self, part: Tensor, dim: int) -> Tensor:
        """The parts of all processes, concatenated along `dim` in order of rank."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, dim)

    def own_part(self, whole: Tensor, dim: int) -> Tensor:
        """This process's part of a result of `gather`."""
        return whole.tensor_split(self.size, dim)[self.rank].contiguous()

    def check_equal(self, what: str, value: Any) -> None:
        """Raises CharLMError in every process if `value` is not the same in all. what: its name in the message."""
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        odd = [rank for rank, other in enumerate(values) if other != values[0]]
        if odd:
            raise CharLMError(
                f"rank {odd[0]} has another {what} than rank 0: {values[odd[0]]} and {values[0]}; give all the same"
            )

    def from_first(self, call: Callable[[], T]) -> T:
        """The result of `call()` in the first process, in all of them. A CharLMError there is raised in all."""
        if self.size == 1:
            return call()
        outcome: list[Any] = [None, ""]
        if self.is_first:
            try:
                outcome = [call(), ""]
            except CharLMError as error:
                outcome = [None, str(error)]
        dist.broadcast_object_list(outcome, device=self.device)
        if outcome[1]:
            raise CharLMError(outcome[1])
        return outcome[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def is_peer_failure(self, error: RuntimeError) -> bool:
        """True if an error comes from a lost connection to another process."""
        text = f"{type(error).__name__} {error}".lower()
        return self.size > 1 and any(word in text for word in ("gloo", "nccl", "distbackend", "distnetwork", "peer"))

    def close(self) -> None:
        """Destroy the process group and its threads. No reference to a wrapped module may exist any more.

        The threads of gloo end with the last reference to the group. A thread that releases its last tensor after Python
        has finalised aborts the process: `terminate called without an active exception`.
        """
        if self.size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] in ("mps", "xpu", "meta"):
        raise CharLMError(
            f"--device is {name!r}, and models are trained on cpu and cuda; expected auto, cpu, cuda or cuda:0"
        )
    device = find_device(name)
    if device.type == "cuda":
        device = torch.device("cuda", local if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise CharLMError(
                f"there is no device {device}: this machine has {count(torch.cuda.device_count(), 'CUDA device')}; "
                "use one of them, or --device cpu"
            )
        torch.cuda.set_device(device)
    return device
