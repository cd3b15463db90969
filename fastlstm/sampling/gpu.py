"""The engine on a GPU: one launch of a backend for many draws."""

from __future__ import annotations

import torch
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
        self._plain = TorchEngine(weights)  # copies the weights, and takes over once a launch was refused
        self.weights = own = self._plain.weights
        self._backend, self._device = backends.load(backend), own.w_out.device
        layers = [DecoderLayer(layer.start, layer.w_ih, layer.w_hh) for layer in own.layers]
        self._decoder = self._backend.decoder(DecoderWeights(layers, own.w_out, own.b_out, own.stored))
        self._requested = dispatch.requested_backend() == backend
        self._follows: Tensor | None = None  # of the options of the last call, on the device
        self._of: Options | None = None
        self._launches = True

    def run(self, streams: Streams, options: Options, ids: Tensor, log_probs: Tensor | None) -> None:
        """Feed the rows of `ids` that `streams` has not fed yet and draw the others, for every stream that has not ended."""
        if self._launches:
            try:
                self._launch(streams, options, ids, log_probs)
                return
            except UnfitError:  # nothing was done to the streams
                if self._requested:
                    raise
                self._launches = False
        self._plain.run(streams, options, ids, log_probs)

    def _launch(self, streams: Streams, options: Options, ids: Tensor, log_probs: Tensor | None) -> None:
        """All streams, in as many launches as they take; what they change is written when all have ended well."""
        B, most = ids.shape[1], self._decoder.most_streams
        changed = {"ids": ids, "h": streams.h, "c": streams.c, "ended": streams.ended}
        if streams.states is not None:
            changed["states"] = streams.states
        if log_probs is not None:
            changed["log_probs"] = log_probs
        follows = None if streams.states is None else self._follows_of(options)
        done, line = [], ""
        for first in range(0, B, most):
            of_part = [slice(None), slice(first, min(first + most, B))]
            at = {name: of_part[1:] if value.dim() == 1 else of_part for name, value in changed.items()}
            own = {name: _copy(value[tuple(at[name])]) for name, value in changed.items()}
            line = self._decoder.run(
                DecodeCall(
                    **{"states": None, "log_probs": None, **own},
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
                )
            )
            done.append((at, own))
        self._backend.check(self._device)  # what went wrong in a launch belongs to this call
        for at, own in done:
            for name, value in own.items():
                changed[name][tuple(at[name])] = value
        dispatch.record_plan(line if most >= B else f"{line} of {B}")

    def _follows_of(self, options: Options) -> Tensor:
        if self._of is not options:
            self._of, self._follows = options, options.follows.to(self.weights.w_out.device)
        return self._follows


def _copy(value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format)


dynamo_skip(__name__)
