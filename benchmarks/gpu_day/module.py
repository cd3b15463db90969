"""fastlstm.LSTM as a user calls it beside nn.LSTM: in turns in one process, eager and replayed from a CUDA graph.

The planner's kernel is `cuda` in a row's seconds. Of `lean` and `cooperative`, the one that it did not pick is timed with
them under its own name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import product

import torch

import fastlstm
from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import ALLOWED, GpuExecutor
from benchmarks.gpu_day.layers import (
    LayerConfig,
    call_of,
    cudnn_algorithm,
    input_of,
    make_lstm,
    make_torch_lstm,
    relative_difference,
)
from benchmarks.gpu_day.measure import TimedCall

T = 128
SIZES = (
    (1024, 16),
    (512, 16),
    (256, 16),
    (512, 64),
    (1024, 64),
    (128, 16),
    (256, 64),
    (768, 16),
    (128, 64),
    (1024, 128),
)
KINDS = (("dense", 2), ("bidirectional", 1), ("packed", 1), ("projected", 1))


def all_configs() -> list[LayerConfig]:
    """The headline first: one layer in each type, then other kinds of layers, then the remaining sizes."""
    first = [LayerConfig("dense", math, 1, H, B, T) for (H, B), math in product(SIZES[:4], ("bf16", "f16", "tf32"))]
    layouts = [
        LayerConfig(layout, math, L, H, B, T)
        for (H, B), (layout, L), math in product(((512, 64), (256, 16)), KINDS, ("bf16", "tf32"))
    ]
    rest = [LayerConfig("dense", math, 1, H, B, T) for (H, B), math in product(SIZES[4:], ("bf16", "tf32", "f16"))]
    return [
        *first,
        *layouts,
        *rest,
        LayerConfig("dense", "bf16", 1, 1024, 1, T),
        LayerConfig("dense", "f32", 1, 512, 16, T),
    ]


def items(executor: GpuExecutor) -> list[Item]:
    executor.start()
    configs = all_configs()
    if executor.rehearsal:
        configs = [
            LayerConfig("dense", "bf16", 2, 16, 2, 3),
            LayerConfig("packed", "tf32", 1, 16, 2, 3),
            LayerConfig("projected", "f32", 1, 16, 2, 2),
        ]
    return [Item(config.what, (config,)) for config in configs]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    (config,) = item.values
    with executor.math(config.math):
        forced = executor.avoid_failed_kernels(config.math, config.H, config.B, config.layout == "projected")
        torch.manual_seed(0)
        torch_lstm = make_torch_lstm(config, executor)
        lstm = make_lstm(torch_lstm, config, executor)
        for mode in ("inference", "training"):
            yield from _mode_rows(executor, config, torch_lstm, lstm, mode, forced)


def _mode_rows(executor: GpuExecutor, config: LayerConfig, torch_lstm, lstm, mode: str, forced: str) -> Iterator[dict]:
    x = input_of(config, executor, mode == "training")
    with fastlstm.backend(executor.backend):
        plain = call_of(lstm, x, mode)

    def forced_call() -> list[torch.Tensor]:
        with fastlstm.backend(executor.backend):
            return plain()

    def only(kernel: str) -> TimedCall:
        def call() -> list[torch.Tensor]:
            with executor.only(kernel):
                return forced_call()

        return call

    runs = {"torch": call_of(torch_lstm, x, mode), "cuda": forced_call}
    expected = runs["torch"]()
    off = relative_difference(runs["cuda"](), expected)
    plan = fastlstm.dispatch.last_plan()
    if not plan.startswith(executor.backend):
        raise RuntimeError(f"{executor.backend} was asked for and this ran: {plan}")
    columns = {**config.columns, "training": mode == "training", "off": off, "plan": plan[:160], "forced": forced}
    choices = executor.choose(config.math, config.H, config.B, projected=config.layout == "projected")
    columns["kernels"] = [forced or choice.kernel for choice in choices]  # of forward and backward
    others = {} if forced else {kernel: only(kernel) for kernel in _others(executor, config, columns["kernels"])}
    columns["off_others"] = {kernel: relative_difference(call(), expected) for kernel, call in others.items()}
    runs |= others
    columns["algorithm"] = cudnn_algorithm(config, mode == "training")
    seconds, repeats = measure.in_turns(executor, runs)
    yield {**columns, "graph": False, "seconds": seconds, "repeats": repeats, **_status(executor, config, off)}
    if config.layout == "packed":  # torch copies lengths to the GPU, which no graph can; the stage `graph` tries ours
        return
    replays, errors = measure.replays(executor, runs)
    seconds, repeats = measure.in_turns(executor, replays)
    yield {**columns, "graph": True, "seconds": seconds, "repeats": repeats | errors, **_status(executor, config, off)}


def _others(executor: GpuExecutor, config: LayerConfig, picked: list[str]) -> list[str]:
    """Of `lean` and `cooperative` those that were not picked, can run the call, and have not failed."""
    kernels = []
    for kernel in ("lean", "cooperative"):
        if kernel in picked or any(executor.failed(kernel, config.math, back) for back in (False, True)):
            continue
        with suppress(ValueError):  # it does not fit
            executor.choose(config.math, config.H, config.B, only=kernel, projected=config.layout == "projected")
            kernels.append(kernel)
    return kernels


def _status(executor: GpuExecutor, config: LayerConfig, off: float) -> dict:
    """The status word, and whether the results are wrong; what timed out is not used again."""
    status = executor.take_status()
    if status:
        choices = executor.choose(config.math, config.H, config.B, projected=config.layout == "projected")
        kernels = {choice.kernel for choice in choices}
        kernels |= set(_others(executor, config, list(kernels)))
        executor.timed_out |= {(kernel, config.math, back) for kernel in kernels for back in (False, True)}
    # differences grow from layer to layer and through backward
    return {"status": status, "wrong": bool(status) or not off <= 3 * ALLOWED[config.math]}
