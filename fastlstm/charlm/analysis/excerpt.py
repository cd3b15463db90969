"""Excerpts: the part of a file, a corpus or the validation text that a model is analysed on."""

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

    Attributes:
        name: of the text; of a file without its folder, since pages that show it are given away
        text: the symbols; of a byte model as latin-1
        ids: (N,) that the model reads
        unknown: (N,) bool, characters outside the vocabulary, which are replaced in `ids`
        note: for the user, about these
    """

    name: str
    text: str
    ids: np.ndarray
    unknown: np.ndarray
    note: str | None = None

    def __len__(self) -> int:
        return len(self.ids)


def of_text(lm: CharLM, text: str, name: str = "a text") -> Excerpt:
    """A whole text as an excerpt; characters outside the vocabulary are replaced by a space."""
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
    """Characters `start` to `start + length` of a text.

    Args:
        lm: model that reads it
        name: file, folder or name of a corpus; None for the model's validation text
        start, length: in characters

    Raises:
        CharLMError: the text cannot be read or ends before `start`.
    """
    if start < 0 or length < 1:
        raise CharLMError(f"the part of the text is {length} characters from {start} on, expected at least 1 from 0 on")
    if name is None:
        corpus = lm.corpus()
        spans = lm.divide(corpus).val_spans
        total = np.cumsum(spans[:, 1] - spans[:, 0])
        spans = spans[: int(np.searchsorted(total, start + length)) + 1]
        symbols = "".join(corpus.text(a, b) for a, b in spans)
        name = f"{corpora.title(corpus.name)}, validation part"
    else:
        source, _ = corpora.find(name, None if lm.config.bytes else lm.config.encoding)
        parts, have = [], 0
        for chunk in source.chunks():
            parts.append(chunk)
            have += len(chunk)
            if have >= start + length:
                break
        symbols, name = "".join(parts), corpora.title(name)
    if start and start >= len(symbols):
        raise CharLMError(f"{name} has {count(len(symbols), 'character')}, so there is nothing at {start:,}")
    return _of_symbols(lm, symbols[start : start + length], name)
