"""`fastlstm.decode`: ids drawn from a TokenLSTM and an output layer, one after another, for one or many streams at once.

On the CPU the whole loop is one native call (csrc/cpu/sampling.h), on a GPU one launch where `fastlstm doctor --verify`
passed it (csrc/cuda/decode.cuh); `plain.py` is the same in torch operations, and the definition. Noise comes from a
counter-based generator, so a stream is the same text for the same seed whatever the number of threads, of streams beside
it, or of calls that it is drawn in.

    ids, state, _ = fastlstm.decode(model, out.weight, out.bias, prime, 1000, temperature=0.8)

    decoder = fastlstm.Decoder(model, out.weight, out.bias)  # weights packed once
    drawing = decoder.start(prime, num=4, seed=1)
    while not drawing.done:
        show(drawing.draw(16).ids)  # the same as one call for all of them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm import dispatch
from fastlstm.dispatch import BackendError
from fastlstm.modules.checks import State
from fastlstm.modules.token_lstm import TokenLSTM
from fastlstm.sampling import gpu, kernel, plain
from fastlstm.sampling.options import FAILED, Options, Streams, is_int
from fastlstm.sampling.weights import Weights, collect

__all__ = ["Decoded", "Decoder", "Decoding", "decode"]

Engine = kernel.NativeEngine | gpu.LaunchEngine | plain.TorchEngine
ROWS_PER_CALL = 256  # rows a native call: between calls Ctrl-C is heard


class Decoded(NamedTuple):
    """What was drawn.

    ids: (n, num) int64, n as asked for or less where all streams ended before; -1 after a stream's end, the stop itself is
    the last one drawn; state: (h, c) as of the module, after every id but each stream's last; log_probs: (n, num), log
    softmax of the scores (before temperature and top-k) at what was drawn, 0 after the end, or None.
    """

    ids: Tensor
    state: State
    log_probs: Tensor | None


class Decoder:
    """A TokenLSTM and its output layer, made ready to draw from.

    model: not bidirectional; dropout plays no part. weight: (V, P) or (V, H) without projection; bias: (V,) or None.
    dtype: how weights are stored, torch.float32 or torch.bfloat16 (half the bytes to read, each weight off by at most
    2⁻⁸ of itself); None: float32, or float64 of a float64 model, which runs in torch operations. All are copied: later
    changes do not show. Raises ValueError for what cannot be decoded, BackendError where a forced backend cannot do it.
    """

    def __init__(
        self, model: TokenLSTM, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> None:
        with torch.no_grad():
            weights = collect(model, weight, bias, dtype)
            self._engine = _engine(weights)
        self.sizes = weights.sizes

    def start(
        self,
        prime: Tensor | Sequence[int],
        *,
        num: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[int | Sequence[int]] = (),
        automaton: tuple[Tensor, int | Tensor] | None = None,
        state: State | None = None,
        position: int = 0,
    ) -> Decoding:
        """Feed the prime and return what draws on from there.

        prime: ids to begin with, at least one, (n,) for all streams or (n, num). temperature: divides the scores, 0 is
        argmax; top_k: only the k largest scores, 0 for all; top_p: only the most likely that together have this
        probability, after temperature and top-k, the one that crosses the line included; of equals the lower id goes
        first. seed: 0 … 2⁶⁴ - 1; stop: ids, or sequences of ids, that end a stream where they were drawn. automaton:
        (follows, start): follows (S, V) integers, the state after each id, -1 where an id is forbidden; start: its state
        after the prime, an int or (num,). state: (h, c) before the prime, (L, P) and (L, H) or (L, num, ·), zero if None.
        position: ids drawn before by other calls: with it, the state that the last call returned and its last ids as the
        prime, a call goes on as if both were one (stop and automaton begin anew; a Decoding carries those too). Raises
        ValueError for arguments out of range.
        """
        options = Options.of(self.sizes, num, temperature, top_k, top_p, seed, stop, automaton, position)
        return Decoding(self._engine, options, prime, state)


class Decoding:
    """Streams that are being drawn; made by `Decoder.start`."""

    def __init__(
        self,
        engine: Engine,
        options: Options,
        prime: Tensor | Sequence[int],
        state: State | None,
    ) -> None:
        self._engine, self._options = engine, options
        self._streams = Streams.begin(engine.weights, options, prime, state, engine.run)

    @property
    def done(self) -> bool:
        """Whether every stream has ended."""
        return bool(self._streams.ended.all())

    def draw(self, length: int, log_probs: bool = False) -> Decoded:
        """Draw up to `length` more ids of every stream. Raises ValueError where scores are NaN, +inf or all forbidden."""
        if not is_int(length, 0):
            raise ValueError(f"length is {length!r}, expected an int of 0 or more")
        length = int(length)
        streams, options = self._streams, self._options
        ids = torch.full((length, options.num), -1, dtype=torch.int64, device=streams.ids.device)
        scores = torch.zeros(length, options.num, dtype=torch.float32, device=streams.ids.device) if log_probs else None
        at = 0
        while at < length and not self.done:
            rows = slice(at, min(at + ROWS_PER_CALL, length))
            ids[rows] = drawn = streams.extend(
                self._engine.run, options, rows.stop - rows.start, None if scores is None else scores[rows]
            )
            if bool((drawn == FAILED).any()):
                t, b = (int(v) for v in (drawn == FAILED).nonzero()[0])
                raise ValueError(
                    f"stream {b} has nothing to draw at step {options.position + streams.steps - len(drawn) + t}: its "
                    "scores are NaN or +inf, or all are forbidden; check the weights, and the automaton where there is one"
                )
            at = rows.stop
        used = int((ids >= 0).any(1).sum())
        return Decoded(ids[:used], streams.state(), None if scores is None else scores[:used])


def decode(
    model: TokenLSTM,
    weight: Tensor,
    bias: Tensor | None,
    prime: Tensor | Sequence[int],
    length: int,
    *,
    num: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[int | Sequence[int]] = (),
    automaton: tuple[Tensor, int | Tensor] | None = None,
    state: State | None = None,
    position: int = 0,
    log_probs: bool = False,
    dtype: torch.dtype | None = None,
) -> Decoded:
    """Draw `length` ids of `num` streams from the softmax of weight @ h + bias, feeding each back.

    model, weight, bias, dtype: see `Decoder`. prime and how to draw (num, temperature, top_k, top_p, seed, stop,
    automaton, state, position): see `Decoder.start`. log_probs: also return log-probabilities. Returns Decoded: ids
    (length, num), fewer where all streams end before; state; log-probabilities. Raises ValueError for arguments out of
    range.
    """
    cut = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    ends = {"stop": stop, "automaton": automaton}
    drawing = Decoder(model, weight, bias, dtype).start(
        prime, num=num, seed=seed, state=state, position=position, **cut, **ends
    )
    return drawing.draw(length, log_probs)


def _engine(weights: Weights) -> Engine:
    """What draws. Raises BackendError where a requested backend cannot."""
    name, sizes, device = dispatch.requested_backend(), weights.sizes, weights.w_out.device
    if name in ("torch", "reference"):
        return plain.TorchEngine(weights)
    if name in (None, "cpu"):
        reason = kernel.unsupported_reason(weights)
        if reason is None:
            return kernel.NativeEngine(weights)
        if name == "cpu":
            raise BackendError(f"backend 'cpu' was asked for and cannot decode: {reason}")
    backend = dispatch.decoding_backend(sizes, weights.stored, device)
    return plain.TorchEngine(weights) if backend is None else gpu.LaunchEngine(weights, backend)
