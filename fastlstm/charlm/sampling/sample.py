"""Drawing text from a model, one character after another, for one or many streams at once.

fastlstm.Decoder draws the ids; what is here is text: the prime, byte sequences, the stop. Stream i of a seed has random
numbers of its own, so it is the same text whatever `num` is, and however many symbols are drawn at a time.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

import fastlstm

from ..data import utf8
from ..data.vocab import Vocabulary
from ..errors import CharLMError
from ..model import CharModel

ROWS = 32  # symbols between two pieces: a few milliseconds of the largest models


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
            ("temperature", 0 <= self.temperature < float("inf"), "a finite number, 0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("num", self.num >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 1 << 63, "0 to 2**63 - 1"),
        ):
            if not right:
                raise CharLMError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected {expected}")


def check(vocab: Vocabulary, drawing: Drawing) -> None:
    """Raises CharLMError where the prime or the stop has characters that the model never saw."""
    vocab.encode(vocab.from_text(drawing.prime), "the prime")
    vocab.encode(vocab.from_text(drawing.stop), "the stop")


def symbols(model: CharModel, vocab: Vocabulary, drawing: Drawing, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Yields ids, (n ≤ rows, num) int64, -1 after a stream's stop, until all have ended or `drawing.length` is reached.

    Of a byte model up to three more, one row at a time, which complete a last character.
    """
    check(vocab, drawing)
    stop = vocab.encode(vocab.from_text(drawing.stop)).tolist()
    options: dict[str, object] = {"num": drawing.num, "seed": drawing.seed, "stop": [stop] if stop else []}
    options |= {"top_k": drawing.top_k, "top_p": drawing.top_p}
    options["temperature"] = 0.0 if drawing.argmax else drawing.temperature
    symbols_of_prime = vocab.from_text(drawing.prime)
    if vocab.bytes:
        options["automaton"] = torch.from_numpy(utf8.NEXT), utf8.state_after(symbols_of_prime.encode("latin-1"))
    left = drawing.length
    if symbols_of_prime or "\n" in vocab:
        prime = vocab.encode(symbols_of_prime or "\n").astype(np.int64)
    else:  # nothing to begin with: the first symbol is any
        prime = np.array([[_first(drawing.seed, b, len(vocab)) for b in range(drawing.num)]])
        yield prime
        left -= 1
    decoder = fastlstm.Decoder(model.rnn, model.out.weight, model.out.bias)
    drawn = decoder.start(torch.from_numpy(prime), **options)
    while left > -3 * vocab.bytes and not drawn.done:
        try:
            ids = drawn.draw(min(rows, left) if left > 0 else 1).ids
        except ValueError as error:
            raise CharLMError(f"the model cannot be drawn from: {error}") from error
        left -= len(ids)
        yield ids.cpu().numpy()


def _first(seed: int, stream: int, symbols: int) -> int:
    return int(np.random.Generator(np.random.Philox(key=[seed, stream])).integers(symbols))


class _Stream:
    """The text of one stream as it grows: completes byte sequences, holds back what may become the stop string."""

    def __init__(self, vocab: Vocabulary, drawing: Drawing):
        self.vocab, self.stop, self.left = vocab, drawing.stop, drawing.length
        self.decoder = codecs.getincrementaldecoder("utf-8")() if vocab.bytes else None
        self.held, self.done = "", False

    def feed(self, ids: np.ndarray) -> str:
        """Takes ids, returns the text that is now certain."""
        return "".join(self._one(index) for index in ids.tolist() if not self.done)

    def _one(self, index: int) -> str:
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


def stream(model: CharModel, vocab: Vocabulary, drawing: Drawing, rows: int = ROWS) -> Iterator[list[str]]:
    """Yields the new piece of text of every stream, at most `rows` symbols at a time, until all have ended."""
    streams = [_Stream(vocab, drawing) for _ in range(drawing.num)]
    for ids in symbols(model, vocab, drawing, rows):
        yield [one.feed(ids[:, b]) for b, one in enumerate(streams)]
        if all(one.done for one in streams):
            return


def draw(model: CharModel, vocab: Vocabulary, drawing: Drawing) -> list[str]:
    """The text of every stream, without the prime."""
    parts: list[list[str]] = [[] for _ in range(drawing.num)]
    for pieces in stream(model, vocab, drawing, rows=drawing.length):
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return ["".join(part) for part in parts]
