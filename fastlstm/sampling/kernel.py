"""The native engine: weights packed into the kernel's blocks, and one call for many draws."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import dispatch
from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import native
from fastlstm.sampling.options import Options, Streams
from fastlstm.sampling.weights import Weights

_LANES = 16  # units of a block, kLaneBlock in csrc/cpu/blocks.h


def unsupported_reason(weights: Weights) -> str | None:
    """Return why the native loop cannot decode with these weights, or None."""
    if weights.w_out.device.type != "cpu":
        return f"the weights are on {weights.w_out.device}"
    if weights.w_out.dtype is not torch.float32:
        return "the weights are float64; give dtype=torch.float32"
    return native.unavailable()


class Native:
    """Draws with csrc/cpu/decode.h."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self._half = weights, weights.stored is torch.bfloat16
        _, H, _, V = weights.sizes
        self._layers = []
        for start, w_ih, w_hh, w_hr in weights.layers:
            begin = _blocks(start.view(-1, 4, H))
            projection = None if w_hr is None else self._packed(1, None, w_hr)
            self._layers.append((begin, self._packed(4, w_ih, w_hh), projection))
        self._out = self._packed(1, None, weights.w_out)
        self._bias = torch.nn.functional.pad(weights.b_out, (0, _up(V) - V))

    def _packed(self, gates: int, w_ih: Tensor | None, w_hh: Tensor) -> Tensor:
        """`gates` matrices side by side in blocks, each row that of w_ih (if any) and then of w_hh."""
        units, I, P = w_hh.shape[0] // gates, 0 if w_ih is None else w_ih.shape[1], w_hh.shape[1]
        out = torch.empty(gates * _up(units) * (I + P), dtype=self.weights.stored)
        w_hh, w_ih = w_hh.contiguous(), None if w_ih is None else w_ih.contiguous()
        sizes, threads = (gates, units, I, P), torch.get_num_threads()
        native.load().pack((out.data_ptr(), _at(w_ih), w_hh.data_ptr()), sizes, self._half, threads)
        return out

    def run(self, streams: Streams, options: Options, ids: Tensor, log_probs: Tensor | None) -> None:
        """Feed the rows of `ids` that `streams` has not fed yet and draw the others, for every stream that has not ended."""
        _, H, P, V = self.weights.sizes
        known, B = len(streams.ids), ids.shape[1]
        stops = torch.tensor([v for one in options.stop for v in one], dtype=torch.int64)
        ends = torch.tensor([len(one) for one in options.stop], dtype=torch.int64).cumsum(0)
        follows = None if streams.states is None else options.follows
        held = (ids, log_probs, streams.h, streams.c, streams.ended, streams.states, self._out, self._bias)
        layers = [tuple(map(_at, layer)) for layer in self._layers]
        sizes = (len(options.stop), B, H, P, V, known, len(ids) - known, streams.fed, streams.before)
        position = options.position + streams.steps
        drawing = (options.temperature, options.top_k, options.top_p, options.seed, position)
        pointers = tuple(map(_at, (*held, follows, stops, ends)))
        native.load().decode(pointers, layers, sizes, drawing, self._half, torch.get_num_threads())
        dispatch.record_plan(f"cpu: decode, {B} streams, {native.load().isa()}")


def _up(n: int) -> int:
    return (n + _LANES - 1) // _LANES * _LANES


def _at(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def _blocks(start: Tensor) -> Tensor:
    """(rows, 4, H) to (rows, blocks of H, 4, 16), the last block filled up with zeros."""
    rows, _, H = start.shape
    wide = torch.nn.functional.pad(start, (0, _up(H) - H))
    return wide.view(rows, 4, -1, _LANES).transpose(1, 2).contiguous()


dynamo_skip(__name__)
