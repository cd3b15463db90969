"""Module calls in CUDA graphs: a replay gives the bits of an eager call, and what the host costs without it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import fastlstm
from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import GpuExecutor
from benchmarks.gpu_day.layers import LayerConfig, call_of, input_of, make_lstm, make_torch_lstm

CONFIGS = (
    *(LayerConfig("dense", math, 1, 512, 16, 64) for math in ("bf16", "f16", "tf32", "f32")),
    LayerConfig("dense", "bf16", 1, 1024, 16, 64),
    LayerConfig("dense", "bf16", 1, 128, 16, 64),
    LayerConfig("dense", "bf16", 2, 256, 64, 64),
    LayerConfig("bidirectional", "bf16", 1, 256, 16, 64),
    LayerConfig("projected", "bf16", 1, 512, 16, 64),
    LayerConfig("packed", "bf16", 1, 512, 16, 64),
    LayerConfig("packed", "tf32", 1, 256, 64, 64),
)


def items(executor: GpuExecutor) -> list[Item]:
    executor.start()
    configs = (
        (LayerConfig("dense", "bf16", 1, 16, 2, 3), LayerConfig("packed", "f32", 1, 16, 2, 3))
        if executor.rehearsal
        else CONFIGS
    )
    return [Item(f"{config.what} {mode}", (config, mode)) for config in configs for mode in ("inference", "training")]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    config, mode = item.values
    with executor.math(config.math), fastlstm.backend(executor.backend):
        forced_kernel = executor.avoid_failed_kernels(config.math, config.H, config.B, config.layout == "projected")
        torch.manual_seed(0)
        call = call_of(
            make_lstm(make_torch_lstm(config, executor), config, executor),
            input_of(config, executor, mode == "training"),
            mode,
        )
        expected = copies(call())
        plan = fastlstm.dispatch.last_plan()
        row = {**config.columns, "mode": mode, "plan": plan[:120], "forced": forced_kernel}
        try:
            replay, outputs = measure.captured(executor, call)
        except Exception as error:
            if not executor.alive():
                raise
            yield {**row, "same": None, "refused": measure.error_text(error)}
            return
        same = []
        for _ in range(3):
            for tensor in outputs:
                tensor.zero_()
            replay()
            executor.sync()
            same += [torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)]
        seconds, repeats = measure.in_turns(executor, {"eager": call, "replay": replay})
        us = {f"{name}_us": time * 1e6 for name, time in seconds.items()}
        yield {**row, "same": all(same), **us, "repeats": repeats, "status": executor.take_status()}


def copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies that keep no autograd graph: its leaves would bring the stream they were made on into the capture."""
    return [tensor.detach().clone() for tensor in tensors]
