"""Tilings of the recurrent kernels, one by one: microseconds of a step of the launch alone, beside what was predicted.

Every result is compared with the definition's. A row holds all that a fit of the cost model needs: the tiling, the model's
counters of its work, the prediction, the time (slope between two lengths, so that launch and loading of W_hh cancel), and
the rest (`fixed_us`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_day.child import Item
from benchmarks.gpu_day.layers import far
from benchmarks.gpu_day.place import ALLOWED, Place, described, dtype
from fastlstm.backends.cuda.launch import LaunchPlan
from fastlstm.ops import reference

BEST, SPREAD = 14, 22  # of the cost model's cheapest, and of the others
SHORT, LONG = 32, 160
SLOW = 20e-3  # seconds of a launch of SHORT steps after which a tiling is left
FEW = 3e-3  # seconds above which it is timed once
IMPORTANT = ((1024, 16), (512, 16), (256, 16), (128, 16), (512, 64), (1024, 64), (768, 16), (256, 64), (1024, 128))


class Ready(NamedTuple):
    """A layer made ready: inputs of the op and what forward saved, at the long length."""

    inputs: tuple
    dh: torch.Tensor
    saved: tuple

    def of(self, T: int) -> tuple[tuple, tuple, tuple]:
        """Inputs, gradients and saved tensors of the first T steps."""
        return (self.inputs[0][:T], *self.inputs[1:]), (self.dh[:T], None, None, None), tuple(v[:T] for v in self.saved)


def items(place: Place, *maths: str) -> list[Item]:
    place.start()
    rest = [size for size in product((1024, 512, 256, 768, 128), (64, 16, 1, 128)) if size not in IMPORTANT]
    sizes = (*IMPORTANT, *rest) if maths == ("bf16",) else IMPORTANT[:6]
    if place.rehearsal:
        sizes = ((24, 3),)
    wanted = [(math, H, B, back) for (H, B), math, back in product(sizes, maths, (False, True))]
    return [
        Item(f"{m} H{H} B{B} {'backward' if back else 'forward'}", (m, H, B, back), f"{m} {back}")
        for m, H, B, back in wanted
    ]


def run(place: Place, item: Item) -> Iterator[dict]:
    math, H, B, back = item.values
    if place.losses(item.key) > 1:
        yield {"item": item.what, "skipped": "two processes were lost with this type and direction"}
        return
    with place.math(math), torch.no_grad():
        planned = place.choose(math, H, B)
        made = ready(place, math, H, B)
        right = _right(place, made, back)
        for choice, planner in _wanted(place, math, H, B, back, planned[back]):
            if (choice.kernel, math, back) in place.timed_out:
                continue
            if place.late():
                place.left_out += 1
                continue
            pair = (planned[0], choice) if back else (choice, planned[1])
            row, out = _timed(place, LaunchPlan(*pair, math == "tf32"), made, back)
            off = far(out, right)
            wrong = bool(row["status"]) or not off <= ALLOWED[math]
            if row["status"]:
                place.timed_out.add((choice.kernel, math, back))
            about = {"math": math, "H": H, "B": B, "backward": back, "planner": planner, "off": off, "wrong": wrong}
            about["beside"] = "definition"
            yield {**about, **row, **described(choice)}


def _wanted(place: Place, math: str, H: int, B: int, back: bool, planned: Any) -> list[tuple[Any, bool]]:
    """The planner's pick, the cheapest by the cost model, and some of all the others, each with whether it is the pick."""
    fits = place.tilings(math, H, B, back)
    best, rest = (2, 1) if place.rehearsal else (BEST, SPREAD)
    others = fits[best:]
    chosen = fits[:best] + others[:: max(1, len(others) // rest)][:rest]
    mine = described(planned)["tiling"]
    chosen = [c for c in chosen if described(c)["tiling"] != mine]
    return [*([(planned, True)] if planned.kernel != "per_step" else []), *((c, False) for c in chosen)]


def ready(place: Place, math: str, H: int, B: int) -> Ready:
    """A layer of the long length whose input side is almost nothing, with what `per_step` or the planner's kernel saved."""
    torch.manual_seed(0)
    T, of, spread = 4 if place.rehearsal else LONG, dtype(math), H**-0.5

    def new(*shape: int, to: torch.dtype = of) -> torch.Tensor:
        return (torch.rand(*shape, device=place.device) * 2 - 1).to(to)

    cell = torch.float32
    x, w_x, bias, w_hh = new(T, B, 16), new(4 * H, 16), new(4 * H), new(4 * H, H) * spread
    inputs = (x, None, w_x, bias, w_hh, None, new(B, H), new(B, H, to=cell), None, None, None)
    h, c = new(T, B, H) * 0.5, new(T, B, H, to=cell)
    gates = torch.rand(T, B, 4 * H, device=place.device).to(of)  # any will do: the time does not depend on them
    return Ready(inputs, new(T, B, H), (h, c, gates))


def _lengths(place: Place) -> tuple[int, int]:
    return (2, 4) if place.rehearsal else (SHORT, LONG)


def _right(place: Place, made: Ready, back: bool) -> list[torch.Tensor]:
    """What the definition gives for the short length, in the same type: no kernel is judged by another."""
    inputs, grads, saved = made.of(_lengths(place)[0])
    out = reference.backward(*grads, *inputs, False, 1, *saved) if back else reference.forward(*inputs, False, 1)
    return [value for value in out if value.numel()]


def _timed(place: Place, plan: LaunchPlan, made: Ready, back: bool) -> tuple[dict, list[torch.Tensor]]:
    """Times and status of one tiling, and its results of the short length."""
    short, long = _lengths(place)
    kept: list[torch.Tensor] = []

    def call(T: int) -> None:
        inputs, grads, saved = made.of(T)
        out = place.backward(plan, grads, inputs, saved) if back else place.forward(plan, inputs)
        kept[:] = [value for value in out if value.numel()]

    def launch(T: int, times: int) -> float:
        return statistics.median(place.launch_seconds(lambda: call(T), times))

    call(short)
    row = {"status": place.taken(), "us": None, "fixed_us": None}
    out = list(kept)
    if row["status"]:
        return row, out
    probe = launch(short, 1)
    if probe > SLOW and not place.rehearsal:
        return {**row, "us": probe * 1e6 / short, "fixed_us": 0.0, "slow": True, "repeats": 1}, out
    times = 1 if probe > FEW or place.rehearsal else 5
    few, many = launch(short, times), launch(long, times)
    us = (many - few) / (long - short) * 1e6
    row |= {"us": us, "fixed_us": few * 1e6 - short * us, "repeats": times, "seconds": {short: few, long: many}}
    return {**row, "status": place.taken()}, out
