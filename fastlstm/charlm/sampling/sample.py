"""Samples text from a model, for one or many streams at once.

`fastlstm.Decoder` samples the ids; this file handles text: prime, byte sequences and stop string. Each stream has its
own random numbers, so its text depends neither on `num` nor on the number of ids sampled at a time.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch

import fastlstm

from ..data import utf8
from ..data.vocab import Vocabulary
from ..errors import CharLMError, plain_number
from ..model import CharModel, not_finite

ROWS_PER_CHUNK = 32  # ids of each stream in a chunk: a few milliseconds of the largest models


@dataclass(frozen=True)
class Sampling:
    """Options of sampling.

    Attributes:
        length: maximum number of characters (of a byte model: bytes; the last character is completed)
        temperature: divides the scores; 0 is argmax
        top_k: sample from the k most likely symbols only; 0 for all
        top_p: sample from the most likely symbols that together have this probability only (nucleus sampling)
        argmax: always take the most likely symbol
        prime: text to continue
        stop: ends a stream where it appears; it is not part of the text
        num: streams at once
        seed: of the random numbers
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
        for item in fields(self):
            object.__setattr__(self, item.name, plain_number(getattr(self, item.name)))
        for name in ("length", "top_k", "num", "seed"):
            if type(getattr(self, name)) is not int:
                raise CharLMError(f"--{name.replace('_', '-')} is {getattr(self, name)!r}, expected a whole number")
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


def check_sampling(vocab: Vocabulary, sampling: Sampling) -> None:
    """Raises CharLMError if the prime or the stop string has characters outside the vocabulary."""
    vocab.encode(vocab.from_text(sampling.prime), "the prime")
    vocab.encode(vocab.from_text(sampling.stop), "the stop")


def sample_ids(
    model: CharModel, vocab: Vocabulary, sampling: Sampling, rows: int = ROWS_PER_CHUNK
) -> Iterator[np.ndarray]:
    """Sample ids until all streams have ended or have `sampling.length` symbols.

    A byte model yields up to three more rows, one at a time, which complete the last character.

    Yields:
        (n ≤ rows, num) int64; -1 after a stream's stop string.
    """
    check_sampling(vocab, sampling)
    stop = vocab.encode(vocab.from_text(sampling.stop)).tolist()
    options: dict[str, object] = {"num": sampling.num, "seed": sampling.seed, "stop": [stop] if stop else []}
    options |= {"top_k": sampling.top_k, "top_p": sampling.top_p}
    options["temperature"] = 0.0 if sampling.argmax else sampling.temperature
    symbols_of_prime = vocab.from_text(sampling.prime)
    if vocab.bytes:
        options["automaton"] = torch.from_numpy(utf8.NEXT), utf8.state_after(symbols_of_prime.encode("latin-1"))
    left = sampling.length
    if symbols_of_prime or "\n" in vocab:
        prime = vocab.encode(symbols_of_prime or "\n").astype(np.int64)
    else:  # nothing to begin with: the first symbol is any
        prime = np.array([[_first(sampling.seed, b, len(vocab)) for b in range(sampling.num)]])
        yield prime
        left -= 1
    decoder = fastlstm.Decoder(model.rnn, model.out.weight, model.out.bias)
    decoding = decoder.start(torch.from_numpy(prime), **options)
    while left > -3 * vocab.bytes and not decoding.done:
        try:
            ids = decoding.draw(min(rows, left) if left > 0 else 1).ids
        except ValueError as error:
            raise not_finite(model) from error
        left -= len(ids)
        yield ids.cpu().numpy()


def _first(seed: int, stream: int, symbols: int) -> int:
    return int(np.random.Generator(np.random.Philox(key=[seed, stream])).integers(symbols))


class _TextBuilder:
    """Text of one stream: decodes byte sequences and keeps back what may be the start of the stop string."""

    def __init__(self, vocab: Vocabulary, sampling: Sampling):
        self.vocab, self.stop, self.left = vocab, sampling.stop, sampling.length
        self.decoder = codecs.getincrementaldecoder("utf-8")() if vocab.bytes else None
        self.pending, self.done = "", False

    def feed(self, ids: np.ndarray) -> str:
        """Add ids, (n,); returns the text that is complete by now."""
        return "".join(self._one(index) for index in ids.tolist() if not self.done)

    def _one(self, index: int) -> str:
        symbol = self.vocab.symbols[index]
        piece = self.decoder.decode(symbol.encode("latin-1")) if self.decoder else symbol
        self.left -= 1
        whole = self.decoder is None or not self.decoder.getstate()[0]
        text = self.pending + piece
        if self.stop and (at := text.find(self.stop)) >= 0:
            self.done, self.pending = True, ""
            return text[:at]
        if self.left <= 0 and whole:
            self.done, self.pending = True, ""
            return text
        keep = next((n for n in range(min(len(self.stop) - 1, len(text)), 0, -1) if self.stop.startswith(text[-n:])), 0)
        self.pending = text[len(text) - keep :]
        return text[: len(text) - keep]


def sample_chunks(
    model: CharModel, vocab: Vocabulary, sampling: Sampling, rows: int = ROWS_PER_CHUNK
) -> Iterator[list[str]]:
    """Yields the new text of every stream, at most `rows` symbols at a time, until all have ended."""
    builders = [_TextBuilder(vocab, sampling) for _ in range(sampling.num)]
    for ids in sample_ids(model, vocab, sampling, rows):
        yield [builder.feed(ids[:, b]) for b, builder in enumerate(builders)]
        if all(builder.done for builder in builders):
            return


def sample_texts(model: CharModel, vocab: Vocabulary, sampling: Sampling) -> list[str]:
    """Sample the whole text of every stream, without the prime. Raises CharLMError."""
    parts: list[list[str]] = [[] for _ in range(sampling.num)]
    for pieces in sample_chunks(model, vocab, sampling, rows=sampling.length):
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return ["".join(part) for part in parts]
