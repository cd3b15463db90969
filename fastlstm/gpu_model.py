"""A cost model of one time step on a GPU: what a kernel moves, computes and waits for, against what a device can do.

Plain Python, no torch and no GPU. The planners use it to rank candidates, `tools/gpu_model.py` writes docs/gpu-model.md with
it, and the same constants reproduce published timings (PUBLISHED, `residuals`). Everything it returns is a prediction.

One step of one block (`Work`) costs, on its SM and in sequence:
    max(L2 bytes / L2 rate, shared-memory bytes / 128 B a clock, products / product rate)   these overlap
    + pointwise instructions / 128 lanes + barriers · BARRIER + rounds through L2 · L2 latency   these do not
times the waves of blocks over the SMs. The whole chip can do no better than its HBM and L2 rates. Added to that are launches
and grid-wide waits of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Clocks and microseconds below are round figures from public microbenchmarks and datasheets, not from this project.
BARRIER_CLOCKS = 40  # a block barrier with the shared-memory round trip that it orders
L2_CLOCKS = 280  # a dependent load from L2, or a store that another thread reads from there
CELL_CLOCKS = 120  # instructions of the cell for one unit of one row, backward alike
EFFICIENCY = 0.75  # of a peak rate that a well-fed loop reaches
LAUNCH_US = 2.5  # one kernel inside a CUDA graph, end to start included
HOST_LAUNCH_US = 5.0  # one kernel launched by compiled host code, when the device waits for the host
TORCH_LAUNCH_US = 8.0  # one matrix product or CUDA kernel launched from Python, through torch or pybind11
PYTHON_LAUNCH_US = 15.0  # one kernel launched by Triton's Python launcher
GRID_WAIT_US = 1.3  # every block waits for every other one, data through L2


@dataclass(frozen=True)
class Device:
    """What the planners know of a GPU. Rates are per SM and clock: fma and tensor count multiply-adds."""

    name: str
    capability: int  # 80 for 8.0
    sms: int
    ghz: float
    hbm_gbs: float
    l2_gbs: float
    l2_mib: float
    shared_kib: int  # that one block can ask for
    fma: int  # float32
    half: int  # half-precision tensor cores with float32 sums, through mma.sync
    tf32: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of one block, in bytes."""
        return self.shared_kib * 1024


#         name           cc  SMs   GHz   HBM   L2   L2    shared fma half tf32
#                                        GB/s  GB/s MiB   KiB
KNOWN = {
    d.name: d
    for d in (
        Device("T4", 75, 40, 1.59, 320, 1270, 4, 64, 64, 512, 0),
        Device("A100", 80, 108, 1.41, 2039, 4400, 40, 163, 64, 1024, 512),
        Device("RTX 3090", 86, 82, 1.70, 936, 2300, 6, 99, 128, 256, 128),
        Device("RTX 4090", 89, 128, 2.52, 1008, 5000, 72, 99, 128, 256, 128),
        Device("H100", 90, 132, 1.755, 3350, 5500, 50, 227, 128, 1280, 640),
        Device("H200", 90, 132, 1.755, 4800, 5500, 50, 227, 128, 1280, 640),
        Device("B200", 100, 148, 1.85, 8000, 8000, 126, 227, 128, 1280, 640),
        Device("RTX 5090", 120, 170, 2.41, 1792, 6500, 96, 99, 128, 256, 128),
    )
}


def known(name: str, capability: int, sms: int, shared_bytes: int) -> Device:
    """The device with this name, or one of its capability with its own SM count and shared memory.

    name: as torch.cuda.get_device_properties has it; capability: 80 for 8.0; shared_bytes: limit of one block.
    """
    alike = [d for d in KNOWN.values() if d.name in name]
    if not alike:
        below = [d for d in KNOWN.values() if d.capability <= capability]
        alike = [max(below or [KNOWN["T4"]], key=lambda d: d.capability)]
    d = alike[-1]
    share = sms / d.sms
    rates = (d.ghz, d.hbm_gbs * share, d.l2_gbs * share, d.l2_mib)
    return Device(name, capability, sms, *rates, shared_bytes // 1024, d.fma, d.half, d.tf32)


@dataclass(frozen=True)
class Work:
    """One time step of a kernel. Counts are per block unless they say chip."""

    blocks: int
    l2_bytes: float  # read from L2 by one block
    shared_bytes: float  # read from shared memory by one block
    products: float  # multiply-adds of one block
    rate: str  # which unit does them: "fma", "half", "tf32"
    cells: float  # units times rows of one block, padding included
    barriers: int = 0
    l2_rounds: float = 0  # dependent trips through L2 on the critical path
    hbm_bytes: float = 0  # chip: activations in and out
    launches: float = 0  # chip
    launch_us: float = PYTHON_LAUNCH_US
    grid_waits: float = 0  # chip
    per_sm: int = 1  # blocks that fit one SM at a time


@dataclass(frozen=True)
class Prediction:
    """Microseconds of one step, the part that bounds it, and the floor no kernel can pass on this device."""

    us: float
    bound: str
    floor_us: float
    parts: dict[str, float]


def predict(work: Work, device: Device, floor_us: float = 0.0) -> Prediction:
    """Predict one step of `work` on `device`; floor_us is passed through (see `floor`)."""
    waves = math.ceil(work.blocks / device.sms)
    clock_us = 1e-3 / device.ghz
    l2_rate = min(64.0 * EFFICIENCY, device.l2_gbs / device.ghz / min(max(work.blocks, 1), device.sms))
    rate = getattr(device, work.rate) * EFFICIENCY
    parts = {
        "L2": waves * work.l2_bytes / l2_rate * clock_us,
        "shared memory": waves * work.shared_bytes / 128.0 * clock_us,
        "products": waves * work.products / max(rate, 1e-9) * clock_us,
        "cell": waves * work.cells * CELL_CLOCKS / 128.0 * clock_us,
        "barriers": work.barriers * BARRIER_CLOCKS * clock_us,
        "latency": work.l2_rounds * L2_CLOCKS * clock_us,
        "HBM": work.hbm_bytes / device.hbm_gbs * 1e-3,
        "launch": work.launches * work.launch_us,
        "grid wait": work.grid_waits * GRID_WAIT_US,
    }
    overlapped = max(parts[k] for k in ("L2", "shared memory", "products"))
    chain = overlapped + parts["cell"] + parts["barriers"] + parts["latency"] + parts["launch"] + parts["grid wait"]
    us = max(chain, parts["HBM"])
    return Prediction(us, max(parts, key=lambda k: parts[k]), floor_us, parts)


def floor(device: Device, H: int, B: int, itemsize: int, rate: str) -> float:
    """Microseconds that no kernel can beat: the step's products at peak, its activations through HBM, W_hh read once.

    W_hh is read from registers or shared memory of all SMs together at 128 B a clock each.
    """
    products = 4.0 * H * H * B / (getattr(device, rate) * device.sms * device.ghz * 1e3)
    weights = 4.0 * H * H * itemsize / (128.0 * device.sms * device.ghz * 1e3)
    return max(products, weights, activations(H, B, itemsize, training=False) / device.hbm_gbs * 1e-3)


def activations(H: int, B: int, itemsize: int, training: bool) -> float:
    """HBM bytes of one forward step: xg in and h out; when training also the gates and the float32 c out."""
    return B * H * (4 * itemsize + itemsize + (4 * itemsize + 4 if training else 0))


def spread(H: int, B: int, itemsize: int, rate: str, device: Device, waits: float) -> Work:
    """W_hh spread over all SMs (persistent kernels): every SM reads its share from itself and all of h from L2."""
    share = math.ceil(4 * H / (device.sms * 8)) * 8  # rows of W_hh of one SM, in tiles of 8
    padded = max(16, math.ceil(B / 16) * 16)
    return Work(
        blocks=device.sms,
        l2_bytes=B * H * itemsize,
        shared_bytes=share * H * itemsize,
        products=share * H * padded,
        rate=rate,
        cells=share / 4 * padded,
        barriers=4,
        hbm_bytes=activations(H, B, itemsize, training=False),
        grid_waits=waits,
    )


def separate(H: int, B: int, itemsize: int, rate: str, device: Device, launches: float, launch_us: float) -> Work:
    """A matrix product and a pointwise kernel per step (launched by the host, or inside a graph)."""
    share = math.ceil(4 * H / device.sms)
    padded = max(16, math.ceil(B / 16) * 16)
    return Work(
        blocks=device.sms,
        l2_bytes=share * H * itemsize + B * H * itemsize,
        shared_bytes=share * H * itemsize,
        products=share * H * padded,
        rate=rate,
        cells=share / 4 * padded,
        barriers=4,
        l2_rounds=4 * launches,
        hbm_bytes=activations(H, B, itemsize, training=False),
        launches=launches,
        launch_us=launch_us,
    )


@dataclass(frozen=True)
class Point:
    """A published timing of one forward step, and the work that describes its kernel."""

    what: str
    us: float
    work: Work


def published() -> list[Point]:
    """Published forward timings on an H100 SXM, batch 16, 1024 steps (FlashRNN, arXiv 2412.07752), H 768 in all."""
    h100 = KNOWN["H100"]
    heads = "FlashRNN fused, bf16, two grid-wide waits a step"
    return [
        Point("cuDNN persistent, fp16, H 768", 1.96, spread(768, 16, 2, "half", h100, 1)),
        Point(f"{heads}, H 768", 4.76, spread(768, 16, 2, "half", h100, 2)),
        Point(f"{heads}, 3 heads of 256", 3.5, _heads(256, 3, h100)),
        Point(f"{heads}, 6 heads of 128", 3.1, _heads(128, 6, h100)),
        Point("haste, fp32, H 768, product and pointwise launched per step", 18.0, _haste(h100)),
    ]


def _heads(H: int, heads: int, device: Device) -> Work:
    """Independent recurrences side by side: each on its part of the SMs, all behind the same grid-wide waits."""
    part = Device(device.name, device.capability, device.sms // heads, *_rest(device))
    return spread(H, 16, 2, "half", part, 2)


def _rest(d: Device) -> tuple:
    return d.ghz, d.hbm_gbs, d.l2_gbs, d.l2_mib, d.shared_kib, d.fma, d.half, d.tf32


def _haste(device: Device) -> Work:
    return separate(768, 16, 4, "fma", device, 2, HOST_LAUNCH_US)


def residuals() -> list[tuple[str, float, float, float]]:
    """For every published point: what it is, its µs, the model's µs, and model over published."""
    h100 = KNOWN["H100"]
    rows = []
    for point in published():
        us = predict(point.work, h100).us
        rows.append((point.what, point.us, us, us / point.us))
    return rows
