"""Arrays as text inside a page: raw bytes, deflated, base64; the page unpacks with the browser's DecompressionStream."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..analysis.tracing import Trace

LEVELS = 31  # steps between 0 and 1 in which gates are kept


def pack(*arrays: np.ndarray) -> str:
    """Arrays end to end as base64 of their deflated bytes; little-endian, in C order."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    parts = [packer.compress(np.ascontiguousarray(a).astype(a.dtype.newbyteorder("<")).tobytes()) for a in arrays]
    return base64.b64encode(b"".join([*parts, packer.flush()])).decode()


@dataclass
class CellTraces:
    """What the page shows of every cell for N characters, in small types.

    tanh: (L, H, N) int8, tanh(c) in steps of 1/127; c: (L, H, N) float16; gates: (L, H, 4, N) uint8, i, f, o in steps of
    1/31 from 0, and g, third of the four, in steps of 2/31 from -1.
    """

    tanh: np.ndarray
    c: np.ndarray
    gates: np.ndarray

    @classmethod
    def of(cls, parts: Iterable[Trace], n: int) -> CellTraces:
        """From the pieces of a trace with c and gates, n characters together."""
        found, at = None, 0
        for part in parts:
            L, _, H = part.c.shape
            found = found or cls(
                np.empty((L, H, n), np.int8), np.empty((L, H, n), np.float16), np.empty((L, H, 4, n), np.uint8)
            )
            here = slice(at, at + len(part))
            found.tanh[..., here] = np.rint(127 * np.tanh(part.c)).transpose(0, 2, 1)
            found.c[..., here] = part.c.clip(-6e4, 6e4).transpose(0, 2, 1)
            part.gates[:, :, 2] = (part.gates[:, :, 2] + 1) / 2
            found.gates[..., here] = np.rint(LEVELS * part.gates).transpose(0, 3, 2, 1)
            at += len(part)
        return found

    def colours(self, layer: int, unit: int) -> str:
        """Packed tanh(c)."""
        return pack(self.tanh[layer, unit])

    def rest(self, layer: int, unit: int) -> dict[str, str | float]:
        """Packed c, in 256 steps of its own range, with that range, and the gates."""
        c = self.c[layer, unit].astype(np.float32)
        low, high = float(c.min()), float(c.max())
        steps = np.rint((c - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
        return {"low": round(low, 4), "high": round(high, 4), "data": pack(steps, self.gates[layer, unit])}


def within(traces: CellTraces, order: Iterable[tuple[int, int]], budget: int) -> tuple[dict[str, str], dict[str, dict]]:
    """What fits: packed colours, then the rest, of cells in order while they stay within `budget` characters.

    Colours take two thirds of it at most, so that the best cells of a large model have their gates too. Returns both by
    cell, as `layer:unit`.
    """
    order, colours, rest, reserved = list(order), {}, {}, budget // 3
    for layer, unit in order:
        packed = traces.colours(layer, unit)
        if budget - len(packed) - 16 < reserved:
            break
        budget -= len(packed) + 16
        colours[f"{layer}:{unit}"] = packed
    for layer, unit in order[: len(colours)]:
        packed = traces.rest(layer, unit)
        budget -= len(packed["data"]) + 60
        if budget < 0:
            break
        rest[f"{layer}:{unit}"] = packed
    return colours, rest
