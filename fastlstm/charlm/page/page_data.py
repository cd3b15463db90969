"""Packs arrays into the page: raw bytes, deflated, as base64. The page unpacks them with DecompressionStream."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..analysis.tracing import Trace

GATE_LEVELS = 31  # quantisation steps of a gate between 0 and 1


def pack(*arrays: np.ndarray) -> str:
    """Concatenated arrays, little-endian in C order, deflated, as base64."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    parts = [packer.compress(np.ascontiguousarray(a).astype(a.dtype.newbyteorder("<")).tobytes()) for a in arrays]
    return base64.b64encode(b"".join([*parts, packer.flush()])).decode()


@dataclass
class CellTraces:
    """Quantised traces of all cells for N characters.

    Attributes:
        tanh: (L, H, N) int8, tanh(c) in steps of 1/127
        c: (L, H, N) float16
        gates: (L, H, 4, N) uint8 in the order i, f, g, o; g in steps of 2/31 from -1, the others of 1/31 from 0
    """

    tanh: np.ndarray
    c: np.ndarray
    gates: np.ndarray

    @classmethod
    def from_trace(cls, parts: Iterable[Trace], n: int) -> CellTraces:
        """Quantise a trace. parts: its pieces, with c and gates; n: characters of all together."""
        traces, at = None, 0
        for part in parts:
            L, _, H = part.c.shape
            traces = traces or cls(
                np.empty((L, H, n), np.int8), np.empty((L, H, n), np.float16), np.empty((L, H, 4, n), np.uint8)
            )
            span = slice(at, at + len(part))
            traces.tanh[..., span] = np.rint(127 * np.tanh(part.c)).transpose(0, 2, 1)
            traces.c[..., span] = part.c.clip(-6e4, 6e4).transpose(0, 2, 1)
            part.gates[:, :, 2] = (part.gates[:, :, 2] + 1) / 2
            traces.gates[..., span] = np.rint(GATE_LEVELS * part.gates).transpose(0, 3, 2, 1)
            at += len(part)
        return traces

    def colours(self, layer: int, unit: int) -> str:
        """Packed tanh(c)."""
        return pack(self.tanh[layer, unit])

    def rest(self, layer: int, unit: int) -> dict[str, str | float]:
        """Packed c, in 256 steps of its range, with that range, and packed gates."""
        c = self.c[layer, unit].astype(np.float32)
        low, high = float(c.min()), float(c.max())
        steps = np.rint((c - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
        return {"low": round(low, 4), "high": round(high, 4), "data": pack(steps, self.gates[layer, unit])}


def fit_budget(
    traces: CellTraces, order: Iterable[tuple[int, int]], budget: int
) -> tuple[dict[str, str], dict[str, dict]]:
    """Pack cells, in order, until `budget` characters are used up.

    Colours take at most two thirds of the budget; the rest is for c and gates of the first cells.

    Args:
        traces: of all cells
        order: (layer, unit) of the cells, most important first
        budget: characters

    Returns:
        Packed colours, and packed c and gates, both by `layer:unit`.
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
