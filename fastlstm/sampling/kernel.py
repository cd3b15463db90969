"""The native engine: weights packed into the kernel's blocks, and one call for many draws."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import dispatch
from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import native
from fastlstm.backends.cpu.int8 import pack_layer
from fastlstm.backends.packing import pack, padded
from fastlstm.sampling.options import Options, Streams
from fastlstm.sampling.weights import Layer, Sizes, Weights


def unsupported_reason(weights: Weights) -> str | None:
    """Return why the native loop cannot decode with these weights, or None."""
    if weights.w_out.device.type != "cpu":
        return f"the weights are on {weights.w_out.device}"
    if weights.w_out.dtype is not torch.float32:
        return "the weights are float64; give dtype=torch.float32"
    return native.unavailable()


class NativeEngine:
    """Draws with csrc/cpu/sampling.h."""

    def __init__(self, weights: Weights) -> None:
        self.weights, V = weights, weights.sizes.V
        self._is_int8 = weights.stored is torch.int8
        dtype = torch.float32 if self._is_int8 else weights.stored
        make = _int8_layer if self._is_int8 else _float_layer
        self._layers = [make(layer, weights.sizes, dtype) for layer in weights.layers]
        self._out = pack(weights.w_out, dtype=dtype)
        self._bias = torch.nn.functional.pad(weights.b_out, (0, padded(V) - V))

    def run(self, streams: Streams, options: Options, ids: Tensor, log_probs: Tensor | None) -> None:
        """Feed the rows of `ids` that `streams` has not fed yet and draw the others, for every stream that has not ended."""
        _, H, P, V = self.weights.sizes
        known, B = len(streams.ids), ids.shape[1]
        stops = torch.tensor([v for one in options.stop for v in one], dtype=torch.int64, device="cpu")
        ends = torch.tensor([len(one) for one in options.stop], dtype=torch.int64, device="cpu").cumsum(0)
        follows = None if streams.states is None else options.follows
        extension = native.load()
        kind = {} if self._is_int8 else {"bfloat16": self.weights.stored is torch.bfloat16}
        draw = extension.int8_sample if self._is_int8 else extension.sample
        draw(
            **kind,
            stop_count=len(options.stop),
            layers=self._layers,
            ids=ids,
            log_probs=log_probs,
            h=streams.h,
            c=streams.c,
            ended=streams.ended,
            states=streams.states,
            w_out=self._out,
            b_out=self._bias,
            transitions=follows,
            stops=stops,
            stop_ends=ends,
            B=B,
            H=H,
            P=P,
            V=V,
            known=known,
            T=len(ids) - known,
            fed=streams.fed,
            drawn=streams.before,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            position=options.position + streams.steps,
            threads=torch.get_num_threads(),
        )
        isa = extension.int8_isa() if self._is_int8 else extension.isa()
        dispatch.record_plan(f"cpu: decode, {B} streams, {isa}")


def _float_layer(layer: Layer, sizes: Sizes, dtype: torch.dtype) -> object:
    """A layer with weights of a real type."""
    start, w_ih, w_hh, w_hr = layer
    return native.load().StepLayer(
        start=pack(start.view(-1, 1), gates=4, count=start.numel() // w_hh.shape[0]),
        w=pack(w_hh, w_ih, gates=4, dtype=dtype),
        w_hr=None if w_hr is None else pack(w_hr, dtype=dtype),
        I=0 if w_ih is None else sizes.P,
    )


def _int8_layer(layer: Layer, sizes: Sizes, dtype: torch.dtype) -> object:
    """A layer with int8 weights; dtype: of the output layer."""
    start, w_ih, w_hh, w_hr = layer
    return pack_layer(w_ih, w_hh, w_hr, start.view(-1, 4 * sizes.H), sizes.H, sizes.P)


dynamo_skip(__name__)
