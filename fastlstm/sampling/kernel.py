"""The native engine: weights packed into the kernel's blocks, and one call for many draws."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import dispatch
from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import native
from fastlstm.backends.packing import pack, padded
from fastlstm.sampling.options import Options, Streams
from fastlstm.sampling.weights import Weights


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
        self.weights, dtype, V = weights, weights.stored, weights.sizes.V
        self._layers = []
        for start, w_ih, w_hh, w_hr in weights.layers:
            begin = pack(start.view(-1, 1), gates=4, count=start.numel() // w_hh.shape[0])
            projection = None if w_hr is None else pack(w_hr, dtype=dtype)
            self._layers.append((begin, pack(w_hh, w_ih, gates=4, dtype=dtype), projection))
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
        layers = [
            extension.StepLayer(start=start, w=w, w_hr=w_hr, I=P if k else 0)
            for k, (start, w, w_hr) in enumerate(self._layers)
        ]
        extension.sample(
            bfloat16=self.weights.stored is torch.bfloat16,
            stop_count=len(options.stop),
            layers=layers,
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
        dispatch.record_plan(f"cpu: decode, {B} streams, {native.load().isa()}")


dynamo_skip(__name__)
