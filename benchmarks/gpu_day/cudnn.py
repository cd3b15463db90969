"""nn.LSTM on cuDNN, to compare with: microseconds of a step as the slope over T, eager and in a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from benchmarks.gpu_day import measure
from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.executor import GpuExecutor
from benchmarks.gpu_day.layers import LayerConfig, autocast, call_of, cudnn_algorithm, input_of, make_torch_lstm

LENGTHS = (64, 320)
SIZES = tuple(product((512, 1024, 256, 128), (16, 64))) + tuple(product((768, 1536), (16, 64)))
OTHERS = tuple(product((512, 1024, 256, 128, 768, 1536), (1, 128)))
KINDS = (
    ("dense", 2, 512, 64), ("dense", 3, 512, 128), ("dense", 2, 128, 50), ("packed", 1, 512, 64), ("packed", 1, 256, 64),
    ("projected", 1, 512, 64), ("projected", 1, 1024, 16), ("bidirectional", 1, 512, 64), ("bidirectional", 1, 256, 16),
)  # fmt: skip
REPEATS = {"rounds": 3, "target": 3e-3}


def all_configs() -> list[LayerConfig]:
    """What matters most first; float32 without TF32 and the rarer sizes last."""
    dense = [LayerConfig("dense", math, 1, H, B, 0) for (H, B), math in product(SIZES, ("f16", "bf16", "tf32"))]
    cast = [
        LayerConfig("dense", f"autocast-{half}", 1, H, B, 0) for (H, B), half in product(SIZES[:4], ("f16", "bf16"))
    ]
    layouts = [
        LayerConfig(layout, math, L, H, B, 0) for (layout, L, H, B), math in product(KINDS, ("bf16", "tf32", "f16"))
    ]
    rest = [LayerConfig("dense", math, 1, H, B, 0) for (H, B), math in product(OTHERS, ("f16", "bf16", "tf32"))]
    exact = [LayerConfig("dense", "f32", 1, H, B, 0) for H, B in (*SIZES, *OTHERS)]
    return [*dense, *cast, *layouts, *rest, *exact]


def items(executor: GpuExecutor) -> list[Item]:
    executor.warm()
    configs = all_configs()
    if executor.rehearsal:
        configs = [
            LayerConfig("dense", "bf16", 1, 16, 2, 0),
            LayerConfig("packed", "f32", 2, 16, 2, 0),
            LayerConfig("dense", "autocast-bf16", 1, 16, 2, 0),
        ]
    return [Item(config.what, (config,)) for config in configs]


def run(executor: GpuExecutor, item: Item) -> Iterator[dict]:
    """Inference, forward that keeps, and training step, eager; inference and training from a graph."""
    (config,) = item.values
    with executor.math(config.math), autocast(config, executor):
        lstm = make_torch_lstm(config, executor)
        for mode in ("inference", "training", "forward"):
            calls = {}
            for T in (3, 6) if executor.rehearsal else LENGTHS:
                x = input_of(config._replace(T=T), executor, mode == "training")
                calls[T] = call_of(lstm, x, mode)
            yield _row(executor, config, mode, False, *measure.in_turns(executor, calls, **REPEATS))
            if mode != "forward" and config.layout != "packed":  # torch copies lengths to the GPU, which no graph can
                replays, errors = measure.replays(executor, calls)
                seconds, repeats = measure.in_turns(executor, replays, **REPEATS)
                yield _row(executor, config, mode, True, seconds, repeats | errors)


def _row(executor: GpuExecutor, config: LayerConfig, mode: str, graph: bool, seconds: dict, notes: dict) -> dict:
    """us: of a step, without what a call costs apart from its steps; us_absolute: of a step of the longer call."""
    columns = {name: value for name, value in config.columns.items() if name != "T"}
    row = {**columns, "mode": mode, "graph": graph, "algorithm": cudnn_algorithm(config, mode == "training")}
    row |= {"seconds": seconds, "repeats": notes, "us": None, "us_absolute": None}
    if len(seconds) == 2:
        (short, least), (long, most) = sorted(seconds.items())
        row |= {"us": (most - least) / (long - short) * 1e6, "us_absolute": most / long * 1e6, "T": long}
    return row
