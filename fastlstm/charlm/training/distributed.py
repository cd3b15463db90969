"""The processes of one run: alone, or started by torchrun, each with its share of the streams.

Only what the trainer needs from torch.distributed is here; alone, every call is free.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CharLMError


class Ranks:
    """rank: number of this process; size: how many there are; device: where it computes."""

    def __init__(self, device: str = "auto"):
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if self.size > 1 and not dist.is_initialized():
            # Functions of this module have the group of the time of import as a default, and keep it alive for good;
            # DistributedDataParallel imports it.
            import torch.distributed.nn  # noqa: F401

            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call: gradients are averaged over the processes."""
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values).div_(self.size) if self.size > 1 else values

    def join(self, part: Tensor, dim: int) -> Tensor:
        """The parts of all processes, in order of rank, end to end."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, dim)

    def share(self, whole: Tensor, dim: int) -> Tensor:
        """This process's part of what `join` made."""
        return whole.tensor_split(self.size, dim)[self.rank].contiguous()

    def agree(self, what: str, value: Any) -> None:
        """Every process must hold the same value; each of them names the ones that do not."""
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        odd = [rank for rank, other in enumerate(values) if other != values[0]]
        if odd:
            raise CharLMError(
                f"rank {odd[0]} has another {what} than rank 0: {values[odd[0]]} and {values[0]}; give all the same"
            )

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def lost(self, error: RuntimeError) -> bool:
        """Whether an error says that another process is gone."""
        text = f"{type(error).__name__} {error}".lower()
        return self.size > 1 and any(word in text for word in ("gloo", "nccl", "distbackend", "distnetwork", "peer"))

    def close(self) -> None:
        """Ends the group and its threads; nothing may refer to a wrapped module any more.

        A thread of gloo's that is left drops its last tensor when it gets to run. Where Python has ended by then, that
        is `terminate called without an active exception`, after a run in which all went well. The threads end with the
        group's last reference.
        """
        if self.size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CharLMError(f"there is no device {name!r}; expected auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise CharLMError("this torch has no CUDA device here (see `fastlstm doctor`); use --device cpu")
        device = torch.device("cuda", local if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device
