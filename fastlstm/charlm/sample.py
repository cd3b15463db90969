"""Drawing text from a model, one character after another, for one or many streams at once.

Stream i of a seed draws its own random numbers (Philox, key (seed, i)), so it is the same text whatever `num` is.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from . import utf8
from .errors import CharLMError
from .model import CharModel, State
from .vocab import Vocabulary

PRIME_STEPS = 1024  # characters of a prime per call: bounds memory


@dataclass(frozen=True)
class Drawing:
    """How text is drawn.

    length: characters at most (of a byte model: bytes; the last character is completed); temperature: 0 is the same as
    argmax; top_k: only the k most likely (0: all); top_p: only the most likely that together have this probability;
    prime: text before it; stop: ends a stream where it appears, itself left out; num: streams at once.
    """

    length: int = 2000
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    argmax: bool = False
    prime: str = ""
    stop: str = ""
    num: int = 1
    seed: int = 123

    def __post_init__(self) -> None:
        for name, right, expected in (
            ("length", self.length >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("num", self.num >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 1 << 63, "0 or more"),
        ):
            if not right:
                raise CharLMError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected {expected}")


class _Uniforms:
    """One stream of random numbers for each stream of text, in blocks."""

    def __init__(self, seed: int, num: int, block: int = 256):
        self.generators = [np.random.Generator(np.random.Philox(key=[seed, i])) for i in range(num)]
        self.block, self.used = block, block

    def next(self) -> np.ndarray:
        """(num,) in [0, 1)."""
        if self.used == self.block:
            self.values = np.stack([generator.random(self.block) for generator in self.generators], 1)
            self.used = 0
        self.used += 1
        return self.values[self.used - 1]


def choose(scores: np.ndarray, drawing: Drawing, uniform: np.ndarray) -> np.ndarray:
    """One id of each row, (num,). scores: (num, V) float64, -inf for what is forbidden; uniform: (num,) in [0, 1)."""
    if drawing.argmax or drawing.temperature == 0:
        return scores.argmax(1)
    weights = np.exp((scores - scores.max(1, keepdims=True)) / drawing.temperature)
    if 0 < drawing.top_k < weights.shape[1]:
        order = np.argsort(-weights, 1, kind="stable")  # a tie goes to the lower id: exactly k are left
        np.put_along_axis(weights, order[:, drawing.top_k :], 0.0, 1)
    if drawing.top_p < 1:
        order = np.argsort(-weights, 1, kind="stable")
        sums = np.cumsum(np.take_along_axis(weights, order, 1), 1)
        before = np.concatenate([np.zeros_like(sums[:, :1]), sums[:, :-1]], 1)
        dropped = before >= drawing.top_p * sums[:, -1:]  # the one that crosses the line stays
        rows = np.arange(len(weights))[:, None]
        weights[rows, order] = np.where(dropped, 0.0, weights[rows, order])
    sums = np.cumsum(weights, 1)
    return np.minimum((sums <= uniform[:, None] * sums[:, -1:]).sum(1), weights.shape[1] - 1)


class Stepper:
    """A model that is fed one symbol a stream at a time. scores: (num, V), those after the last symbol fed."""

    def __init__(self, model: CharModel, num: int):
        self.model, self.num, self.device = model, num, model.out.weight.device
        self.state: State = model.zero_state(1)

    @torch.inference_mode()
    def prime(self, ids: np.ndarray) -> np.ndarray:
        """Feed the same symbols, (n,), to all streams."""
        steps = torch.from_numpy(ids.astype(np.int64)).to(self.device)[:, None]
        for part in steps.split(PRIME_STEPS):
            scores, self.state = self.model(part, self.state)
        self.state = tuple(s.expand(-1, self.num, -1).contiguous() for s in self.state)
        return self._numpy(scores[-1]).repeat(self.num, 0)

    @torch.inference_mode()
    def step(self, ids: np.ndarray) -> np.ndarray:
        """Feed one symbol to each stream, (num,) int64."""
        scores, self.state = self.model(torch.from_numpy(ids).to(self.device)[None], self.state)
        return self._numpy(scores[0])

    def _numpy(self, scores: torch.Tensor) -> np.ndarray:
        return scores.double().cpu().numpy()


def symbols(model: CharModel, vocab: Vocabulary, drawing: Drawing) -> Iterator[np.ndarray]:
    """Yields the next id of every stream, (num,) int64, without end. The model must be in eval mode."""
    uniforms = _Uniforms(drawing.seed, drawing.num)
    prime = vocab.from_text(drawing.prime)
    stepper = Stepper(model, drawing.num)
    if prime or "\n" in vocab:
        scores = stepper.prime(vocab.encode(prime or "\n", "the prime"))
    else:  # nothing to begin with: the first symbol is any
        ids = (uniforms.next() * len(vocab)).astype(np.int64)
        yield ids
        stepper.state = model.zero_state(drawing.num)
        scores = stepper.step(ids)
    state = np.full(drawing.num, utf8.state_after(prime.encode("latin-1"))) if vocab.bytes else None
    while True:
        if state is not None:
            scores = np.where(utf8.ALLOWED[state], scores, -np.inf)
        ids = choose(scores, drawing, uniforms.next()).astype(np.int64)
        if state is not None:
            state = utf8.NEXT[state, ids]
        yield ids
        scores = stepper.step(ids)


class _Stream:
    """The text of one stream as it grows: completes byte sequences, holds back what may become the stop string."""

    def __init__(self, vocab: Vocabulary, drawing: Drawing):
        self.vocab, self.stop, self.left = vocab, drawing.stop, drawing.length
        self.decoder = codecs.getincrementaldecoder("utf-8")() if vocab.bytes else None
        self.held, self.done = "", False

    def feed(self, index: int) -> str:
        """Takes one id, returns the text that is now certain."""
        symbol = self.vocab.symbols[index]
        piece = self.decoder.decode(symbol.encode("latin-1")) if self.decoder else symbol
        self.left -= 1
        whole = self.decoder is None or not self.decoder.getstate()[0]
        text = self.held + piece
        if self.stop and (at := text.find(self.stop)) >= 0:
            self.done, self.held = True, ""
            return text[:at]
        if self.left <= 0 and whole:
            self.done, self.held = True, ""
            return text
        keep = next((n for n in range(min(len(self.stop) - 1, len(text)), 0, -1) if self.stop.startswith(text[-n:])), 0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


def stream(model: CharModel, vocab: Vocabulary, drawing: Drawing) -> Iterator[list[str]]:
    """Yields the new piece of text of every stream, step by step, until all have ended."""
    was_training = model.training
    model.eval()
    streams = [_Stream(vocab, drawing) for _ in range(drawing.num)]
    try:
        for ids in symbols(model, vocab, drawing):
            yield ["" if one.done else one.feed(int(index)) for one, index in zip(streams, ids, strict=True)]
            if all(one.done for one in streams):
                return
    finally:
        model.train(was_training)


def draw(model: CharModel, vocab: Vocabulary, drawing: Drawing) -> list[str]:
    """The text of every stream, without the prime."""
    parts: list[list[str]] = [[] for _ in range(drawing.num)]
    for pieces in stream(model, vocab, drawing):
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return ["".join(part) for part in parts]
