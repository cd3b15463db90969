"""Predictions of what the kernel `lean` changes, for docs/gpu-model.md: steps, training steps and networks.

A training step of a layer is the recurrence forward and backward, by the planner, and four matrix products at rates that
large products reach on an H100. Times of nn.LSTM beside them are those of benchmarks/results, measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastlstm.backends import cost_model
from fastlstm.backends.cost_model import Device
from fastlstm.backends.cuda import planner as cuda_planner
from tools.gpu_fit import committed
from tools.gpu_fit.constants import CostConstants
from tools.gpu_tables import CODES, markdown

UNITS = (128, 256, 512, 768, 1024, 1536, 2048)
BATCHES = (1, 16, 64, 128, 256)
DEVICES = (("H100, H200", "H100"), ("A100", "A100"), ("RTX 4090", "RTX 4090"))
TYPES = {"bfloat16": "bf16", "tf32": "tf32"}
BEFORE = frozenset({"lean"})  # what the planner has no use of in a prediction of the time before it
LETTERS = {"per_step": "P", "single_block": "S", "cooperative": "C", "lean": "L"}

# Achievable operations a second of the matrix products of a layer on an H100, multiplications and additions
PRODUCT_RATES = {"bfloat16": 600e12, "tf32": 350e12}
NETWORKS = ((2, 512), (3, 512), (6, 256), (2, 1024))  # layers, units
NETWORK_BATCHES = (16, 64, 128)

STEPS = """## Predicted: a step before and after the kernel `lean`

Microseconds of one step: before, the best of per_step (P), single_block (S) and cooperative (C); after, the planner's pick
with lean (L) among them. **lean has never run on a GPU.** What its predictions rest on:

- Microbenchmarks on an H200: 64 blocks that gather 16 KiB from each other through L2 take 1356 clocks (the constants
  `gather_clocks` and `gather_kib_clocks` give {gather:.0f}), one hand-over from a store to a load 509 to 689, a load from L2
  283 to 307.
- `pass_clocks`, {passes:g} clocks for products, sums, cells and send of a pass, is an estimate from machine code. It is not
  measured, nor is the factor of 1.4 for backward, nor what a pass with more products takes beyond that.
- Clocks become microseconds at the device's boost clock, 1.755 GHz on an H100 and H200. The H200 ran at 1.515 GHz under
  load, at which a step of lean takes 16 % longer than the table says.
- Of the other kernels the constants are fitted to measured steps, on one H200, so its clock is in them.
"""
TRAINING = """## Predicted: a training step of a layer, beside nn.LSTM measured

Microseconds of one time step on an H100, I = H. *forward*, *backward*: the recurrence, predicted for the planner's pick.
*input*, *dx*, *dW*: matrix products of 8, 8 and 16 B H² operations at {bf16:g} TFLOP/s in bfloat16 and {tf32:g} in TF32
(`PRODUCT_RATES` in `tools/gpu_lean.py`). *step*: their sum, predicted, without the gradient of the bias (0.07 to 0.20 µs
measured for torch's sum). *before*: the same without lean, predicted. *nn.LSTM*: a training step of nn.LSTM on cuDNN,
measured in a CUDA graph on an H200 ([gpu-measured.md](gpu-measured.md)); float16 stands beside bfloat16, since cuDNN has
faster kernels for it. A predicted sum leaves out the gaps between kernels, which a measured time has in it.
"""
LAYERS = """## Predicted: a network, beside nn.LSTM measured

Microseconds of one time step of all layers on an H100, I = H, in a sequence that is long beside the layers; **measured on no
GPU**. *together*: how many layers go into one launch forward / backward, as many as fit. Such a launch has no product of the
input between its layers. *forward*: the recurrence and the products of the input. *step*: a training step. *one by one*: a
training step with each layer in a launch of its own; *before*: the same without lean. nn.LSTM: measured, a training step.
"""
KERNELBENCH = """KernelBench's problem 35 (6 layers of 256 units, T 512, B 10, float32 as TF32, inference) would take {ms:.2f} ms
with the first layer's product of the input: {steps} steps of {us:.2f} µs, {layers} layers in one launch. torch is reported
to take 27 ms there.
"""


def choices(device: Device, math: str, H: int, B: int, without: frozenset[str] = frozenset()) -> tuple:
    """The planner's choices for forward and backward."""
    return cuda_planner.choices(cost_model.library(), device, CODES[math], H=H, B=B, without=without)


def sections(cost: CostConstants = ()) -> list[str]:
    """Steps, training steps and networks. cost: constants that are not the built-in ones."""
    values = {name: value for name, value, *_ in cost_model.library().constants()} | dict(cost)
    gather = values["gather_clocks"] + 16 * values["gather_kib_clocks"]
    tera = {short: PRODUCT_RATES[math] / 1e12 for math, short in TYPES.items()}
    h100 = replace(cost_model.KNOWN["H100"], cost=cost)
    return [
        STEPS.format(gather=gather, passes=values["pass_clocks"]),
        *(_steps(math, cost) for math in TYPES),
        TRAINING.format(**tera),
        _training(h100),
        LAYERS,
        _networks(h100),
        _kernelbench(h100),
    ]


def _steps(math: str, cost: CostConstants) -> str:
    lines = []
    for title, name in DEVICES:
        device = replace(cost_model.KNOWN[name], cost=cost)
        for H in UNITS:
            both = [(choices(device, math, H, B, BEFORE), choices(device, math, H, B)) for B in BATCHES]
            for backward, direction in enumerate(("forward", "backward")):
                cells = (_change(before[backward], after[backward]) for before, after in both)
                lines.append((title, H, direction, *cells))
    return markdown((math, "H", "direction", *(f"B {B}" for B in BATCHES)), lines)


def _change(before, after) -> str:
    old, new = (f"{LETTERS[choice.kernel]} {choice.us:.2f}" for choice in (before, after))
    return f"{old} → {new}" if old != new else old


def products_us(math: str, H: int, B: int) -> tuple[float, float, float]:
    """Microseconds a time step of the input product, that for dx, and the two for dW; I = H."""
    one = 8 * B * H * H / PRODUCT_RATES[math] * 1e6
    return one, one, 2 * one


def training_us(device: Device, math: str, H: int, B: int, without: frozenset[str] = frozenset()) -> float:
    """Microseconds a time step of a layer's training step: both recurrences and the products."""
    return sum(choice.us for choice in choices(device, math, H, B, without)) + sum(products_us(math, H, B))


def _training(device: Device) -> str:
    measured, lines = _cudnn(), []
    for math, short in TYPES.items():
        for H in UNITS:
            for B in BATCHES:
                ahead, back = choices(device, math, H, B)
                words = [f"{us:.2f}" for us in (ahead.us, back.us, *products_us(math, H, B))]
                step, before = (training_us(device, math, H, B, without) for without in (frozenset(), BEFORE))
                nn_lstm = _measured(measured, short, 1, H, B)
                lines.append((short, H, B, *words, f"{step:.2f}", f"{before:.2f}", nn_lstm))
    head = ("type", "H", "B", "forward", "backward", "input", "dx", "dW", "step", "before", "nn.LSTM")
    return markdown(head, lines)


def network_us(device: Device, math: str, L: int, H: int, B: int) -> tuple[str, float, float]:
    """Layers in a launch, and microseconds a time step of L layers: forward, and a training step."""
    alone = choices(device, math, H, B)
    product_in, dx, dw = products_us(math, H, B)
    counts, forward, backward, left = [], 0.0, 0.0, L
    while left:
        count, ahead, back = cuda_planner.together(
            cost_model.library(), device, CODES[math], H=H, B=B, most=left, chained=True
        )
        forward += product_in + (alone[0].us if ahead is None else ahead.us)
        backward += dx + count * dw + (count * alone[1].us + (count - 1) * dx if back is None else back.us)
        counts.append(f"{count} / {1 if back is None else count}")
        left -= count
    return ", ".join(counts), forward, forward + backward


def _networks(device: Device) -> str:
    measured, lines = _cudnn(), []
    for math, short in TYPES.items():
        for L, H in NETWORKS:
            for B in NETWORK_BATCHES:
                one_by_one, before = (L * training_us(device, math, H, B, w) for w in (frozenset(), BEFORE))
                counts, forward, step = network_us(device, math, L, H, B)
                words = [f"{us:.2f}" for us in (forward, step, one_by_one, before)]
                lines.append((short, f"{L} x {H}", B, counts, *words, _measured(measured, short, L, H, B)))
    head = ("type", "layers x H", "B", "together", "forward", "step", "one by one", "before", "nn.LSTM")
    return markdown(head, lines)


def _kernelbench(device: Device) -> str:
    L, H, B, T = 6, 256, 10, 512
    lib, code = cost_model.library(), CODES["tf32"]
    count, ahead, _ = cuda_planner.together(lib, device, code, H=H, B=B, most=L, chained=True)
    steps, us = T + count - 1, ahead.us if ahead else choices(device, "tf32", H, B)[0].us
    launches = -(-L // count)
    ms = launches * (steps * us + T * products_us("tf32", H, B)[0]) / 1e3
    return KERNELBENCH.format(ms=ms, steps=steps, us=us, layers=count)


def _cudnn() -> dict[tuple, float]:
    """Microseconds a time step of training nn.LSTM on an H200, by type, layers, H and B."""
    rows: Sequence[dict] = next((rows for card, rows in committed.files().items() if "H200" in card), ())
    timed = committed.last(rows, "cudnn", "us", "math", "layout", "L", "H", "B", "mode", "graph")
    wanted = (r for r in timed if r["layout"] == "dense" and r["mode"] == "training" and r["graph"])
    return {(r["math"], r["L"], r["H"], r["B"]): r["us"] for r in wanted}


def _measured(measured: dict[tuple, float], short: str, L: int, H: int, B: int) -> str:
    types = ("bf16", "f16") if short == "bf16" else (short,)
    found = [(name, measured.get((name, L, H, B))) for name in types]
    words = [f"{us:.2f}" + (f" ({name})" if len(types) > 1 else "") for name, us in found if us]
    return ", ".join(words) or "-"
