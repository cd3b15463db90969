"""The text that a model is watched on: a part of a file, a corpus, or of what validated it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data import corpora
from ..data.vocab import UNKNOWN
from ..errors import CharLMError, count, shown
from ..lm import CharLM


@dataclass(frozen=True)
class Excerpt:
    """N symbols of a text.

    name: where they are from; text: as they are, a byte model's as latin-1; ids: (N,) as the model reads them;
    unknown: (N,) bool, characters that the model never saw and for which it reads a stand-in; note: about these.
    """

    name: str
    text: str
    ids: np.ndarray
    unknown: np.ndarray
    note: str | None = None

    def __len__(self) -> int:
        return len(self.ids)


def of_text(lm: CharLM, text: str, name: str = "a text") -> Excerpt:
    """A text as an excerpt; for what the vocabulary lacks the model reads a space."""
    symbols = lm.vocab.from_text(text)
    return _of_symbols(lm, symbols, name)


def _of_symbols(lm: CharLM, symbols: str, name: str) -> Excerpt:
    if not symbols:
        raise CharLMError(f"{name} has no text to look at")
    ids = lm.vocab.lookup(symbols).astype(np.int64)
    unknown, note = ids == UNKNOWN, None
    if unknown.any():
        stand_in = next((c for c in " \n" if c in lm.vocab), lm.vocab.symbols[0])
        ids[unknown] = lm.vocab.symbols.index(stand_in)
        kinds = shown("".join(symbols[i] for i in np.flatnonzero(unknown)))
        note = f"{name} has {count(int(unknown.sum()), 'character')} that the model never saw ({kinds}); it read "
        note += f"{stand_in!r} for each"
    return Excerpt(name, symbols, ids, unknown, note)


def read(lm: CharLM, name: str | None, start: int, length: int) -> Excerpt:
    """`length` characters from position `start` on. name: as for training; None for what validated the model."""
    if start < 0 or length < 1:
        raise CharLMError(f"the part of the text is {length} characters from {start} on, expected at least 1 from 0 on")
    if name is None:
        corpus = lm.corpus()
        spans = lm.divide(corpus).val_spans
        total = np.cumsum(spans[:, 1] - spans[:, 0])
        spans = spans[: int(np.searchsorted(total, start + length)) + 1]
        symbols = "".join(corpus.text(a, b) for a, b in spans)
        name = f"{corpus.name}, validation part"
    else:
        source, _ = corpora.find(name, None if lm.config.bytes else lm.config.encoding)
        parts, have = [], 0
        for chunk in source.chunks():
            parts.append(chunk)
            have += len(chunk)
            if have >= start + length:
                break
        symbols = "".join(parts)
    if start and start >= len(symbols):
        raise CharLMError(f"{name} has {count(len(symbols), 'character')}, so there is nothing at {start:,}")
    return _of_symbols(lm, symbols[start : start + length], name)
