"""The engine on a GPU: one launch of a backend for many draws."""

from __future__ import annotations

from torch import Tensor

from fastlstm import backends, dispatch
from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends.base import UnfitError
from fastlstm.backends.decoding import DecodeCall, DecoderLayer, DecoderWeights
from fastlstm.sampling.options import Options, Streams
from fastlstm.sampling.plain import TorchEngine
from fastlstm.sampling.weights import Weights


class LaunchEngine:
    """Draws with a backend that has the loop as a kernel; step by step in torch operations once a launch was refused."""

    def __init__(self, weights: Weights, backend: str) -> None:
        self.weights = weights
        layers = [DecoderLayer(layer.start, layer.w_ih, layer.w_hh) for layer in weights.layers]
        self._decoder = backends.load(backend).decoder(
            DecoderWeights(layers, weights.w_out, weights.b_out, weights.stored)
        )
        self._requested = dispatch.requested_backend() == backend
        self._follows: Tensor | None = None  # of the options of the last call, on the device
        self._of: Options | None = None
        self._instead: TorchEngine | None = None

    def run(self, streams: Streams, options: Options, ids: Tensor, log_probs: Tensor | None) -> None:
        """Feed the rows of `ids` that `streams` has not fed yet and draw the others, for every stream that has not ended."""
        if self._instead is None:
            try:
                self._launch(streams, options, ids, log_probs)
                return
            except UnfitError:  # nothing was done, by the first launch of a call
                if self._requested:
                    raise
                self._instead = TorchEngine(self.weights)
        self._instead.run(streams, options, ids, log_probs)

    def _launch(self, streams: Streams, options: Options, ids: Tensor, log_probs: Tensor | None) -> None:
        B, most = ids.shape[1], self._decoder.most_streams
        follows = None if streams.states is None else self._follows_of(options)
        for first in range(0, B, most):
            part = slice(first, min(first + most, B))
            whole = most >= B
            own = {
                "ids": ids if whole else ids[:, part].contiguous(),
                "h": streams.h if whole else streams.h[:, part].contiguous(),
                "c": streams.c if whole else streams.c[:, part].contiguous(),
                "log_probs": log_probs if whole or log_probs is None else log_probs[:, part].contiguous(),
                "ended": streams.ended[part],
                "states": None if streams.states is None else streams.states[part],
            }
            line = self._decoder.run(
                DecodeCall(
                    known=len(streams.ids),
                    fed=streams.fed,
                    drawn=streams.before,
                    first_stream=first,
                    temperature=options.temperature,
                    top_k=options.top_k,
                    top_p=options.top_p,
                    seed=options.seed,
                    position=options.position + streams.steps,
                    stop=options.stop,
                    follows=follows,
                    **own,
                )
            )
            if not whole:
                ids[:, part], streams.h[:, part], streams.c[:, part] = own["ids"], own["h"], own["c"]
                if log_probs is not None:
                    log_probs[:, part] = own["log_probs"]
        dispatch.record_plan(line if whole else f"{line} of {B}")

    def _follows_of(self, options: Options) -> Tensor:
        if self._of is not options:
            self._of, self._follows = options, options.follows.to(self.weights.w_out.device)
        return self._follows


dynamo_skip(__name__)
