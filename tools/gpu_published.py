"""Published timings of others' kernels, and what the cost model (csrc/cuda/cost_model.h) makes of them.

One forward step on an H100 SXM, batch 16, 1024 steps (FlashRNN, arXiv 2412.07752), H 768 in all. How often FlashRNN's
and cuDNN's kernels wait for the whole grid (two, one) and that haste launches two kernels a step is read from their
descriptions and sources.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from fastlstm.backends import cost_model
from fastlstm.backends.cost_model import Device

# Constants of kernels as lean as the published ones: round figures of public microbenchmarks. The fitted ones describe
# this project's kernels, which issue more instructions a step.
LEAN = (
    *(("l2_excess", 1.0), ("shared_excess", 1.0), ("product_excess", 1.33), ("l2_clocks", 450.0)),
    *(("kept_span_clocks", 140.0), ("register_span_clocks", 105.0), ("step_clocks", 800.0)),
    *(("forward_cell_clocks", 1200.0), ("backward_cell_clocks", 1200.0), ("slot_clocks", 0.25)),
    *(("barrier_clocks", 40.0), ("partial_clocks", 40.0)),
    *(
        ("gather_clocks", 1300.0),
        ("gather_kib_clocks", 14.0),
        ("pass_clocks", 600.0),
    ),  # no published kernel counts these
    *(("grid_wait_us", 0.5), ("launch_us", 8.0)),
)
HOST_LAUNCH_US = 5.0  # a kernel launched by compiled host code, when the device waits for the host


@dataclass(frozen=True)
class PublishedTiming:
    """A published timing of one forward step, the device, and the work that describes its kernel there."""

    what: str
    us: float
    device: Device
    code: int  # of the type (csrc/cuda/args.h)
    work: Any


def spread(device: Device, H: int, B: int, itemsize: int, hand_overs: float) -> Any:
    """W_hh spread over all SMs: every SM reads its share from itself and all of h from L2, in one round."""
    w = cost_model.library().StepWork()
    share = ceil(4 * H / (device.sms * 8)) * 8  # rows of W_hh of one SM, in tiles of 8
    padded = max(16, ceil(B / 16) * 16)
    w.blocks, w.l2_bytes, w.shared_bytes = device.sms, B * H * itemsize, share * H * itemsize
    w.products, w.steps, w.forward_cells, w.barriers = share * H * padded, 1, 1, 4
    w.l2_rounds, w.grid_waits = 1, hand_overs
    return w


def separate(device: Device, H: int, B: int, itemsize: int) -> Any:
    """A matrix product and a pointwise kernel per step."""
    w = spread(device, H, B, itemsize, 0)
    w.l2_bytes += ceil(4 * H / device.sms) * H * itemsize
    w.l2_rounds, w.launches = 8, 2
    return w


def published() -> list[PublishedTiming]:
    """The points. A wait for the whole grid is two hand-overs: that of the arrivals and that of the release."""
    h100 = cost_model.KNOWN["H100"]
    slow_launches = replace(h100, cost=(("launch_us", HOST_LAUNCH_US),))
    flash = "FlashRNN fused, bf16, two grid-wide waits a step"
    rows = [("cuDNN persistent, fp16, H 768", 1.96, h100, 2, spread(h100, 768, 16, 2, 1))]
    for what, us, heads in (("H 768", 4.76, 1), ("3 heads of 256", 3.5, 3), ("6 heads of 128", 3.1, 6)):
        # independent recurrences side by side: each on its part of the SMs, all behind the same waits
        part = replace(h100, sms=h100.sms // heads)
        rows.append((f"{flash}, {what}", us, h100, 3, spread(part, 768 // heads, 16, 2, 4)))
    haste = "haste, fp32, H 768, product and pointwise launched per step"
    rows.append((haste, 18.0, slow_launches, 0, separate(h100, 768, 16, 4)))
    return [PublishedTiming(*row) for row in rows]


def residuals() -> list[tuple[str, float, float, float]]:
    """For every published point: what it is, its µs, the model's µs with LEAN, and model over published."""
    lib, rows = cost_model.library(), []
    for point in published():
        device = replace(point.device, cost=LEAN + point.device.cost)
        us = lib.predict(cost_model.description(device), point.code, point.work).us
        rows.append((point.what, point.us, us, us / point.us))
    return rows
