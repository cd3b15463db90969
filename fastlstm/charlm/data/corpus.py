"""A corpus: the ids of a text, its vocabulary, its hash and, for one item a line, the start of every item.

Loading takes two passes over the source: the first collects the characters and the hash, the second writes the ids.
Above `MAPPED` bytes the ids are in an unlinked, memory-mapped file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import CharLMError, count
from . import corpora
from .text_source import TextSource
from .unknown import Unknown, fitting
from .vocab import Vocabulary, codes

MAPPED = 32 << 20  # bytes on disk above which the ids are memory-mapped


@dataclass(frozen=True)
class CorpusOptions:
    """How a corpus is read.

    Attributes:
        encoding: of the text
        bytes: read raw bytes instead of text
        lines: one item a line; blank lines and surrounding blanks are dropped
        unique: repeated items are dropped (only with `lines`)
    """

    encoding: str = "utf-8"
    bytes: bool = False
    lines: bool = False
    unique: bool = False


@dataclass
class Corpus:
    """An encoded text of N symbols.

    Attributes:
        name: as the user gave it
        ids: (N,) unsigned
        vocab: that encodes it
        options: how it was read
        sha256: of the bytes on disk
        size: bytes on disk
        source: the files behind it
        starts: (K + 1,) int64 for K items; item k is ids[starts[k]:starts[k + 1]], its newline included. None without
            `options.lines`
        notes: messages for the user
    """

    name: str
    ids: np.ndarray
    vocab: Vocabulary
    options: CorpusOptions
    sha256: str
    size: int
    source: TextSource
    starts: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, index: int) -> str:
        """The text of one item, without its newline."""
        return self.vocab.decode(self.ids[self.starts[index] : self.starts[index + 1] - 1])

    def text(self, start: int = 0, stop: int | None = None) -> str:
        return self.vocab.decode(self.ids[start:stop])

    def changed(self) -> list[Path]:
        """Files that changed on disk since they were read."""
        return self.source.changed()


SourceAndNote = tuple[TextSource, str | None]


def find(name: str, options: CorpusOptions) -> SourceAndNote:
    """Resolve a name without reading the text: the source and a note for the user. Raises CharLMError."""
    return corpora.find(name, None if options.bytes else options.encoding)


def load(
    name: str,
    options: CorpusOptions,
    vocab: Vocabulary | None = None,
    folder: Path | None = None,
    source_and_note: SourceAndNote | None = None,
    unknown: str = "error",
) -> Corpus:
    """Read and encode a corpus.

    Args:
        name: file, folder or name of a corpus
        options: how to read it
        vocab: vocabulary to encode with; None for the text's own characters
        folder: for the ids of a large corpus while in use; by default the system's temporary folder
        source_and_note: result of `find`, if it was called before
        unknown: what to do with characters outside `vocab`: `error`, `skip` (leave them out) or `add` (the corpus has a
            longer vocabulary, which begins with `vocab`); see unknown.py

    Raises:
        CharLMError: the text cannot be read, is empty, changes meanwhile, or has characters outside `vocab` (`error`).
    """
    source, note = source_and_note or find(name, options)
    notes = [note] if note else []
    symbols = _symbols(_text(source, options))
    sha256, length = source.sha256, source.size
    if not symbols:
        raise CharLMError(f"{name} is empty: it holds no text")
    odd = None
    if vocab is None:
        vocab = Vocabulary.of_bytes() if options.bytes else Vocabulary(symbols)
    else:
        odd, vocab = Unknown(vocab), fitting(vocab, symbols, unknown, name)
        if options.lines and "\n" not in vocab:
            raise CharLMError(f"the model has no newline in its vocabulary, so it cannot read {name} as lines")
    clean = odd.action(unknown) if odd else None
    ids, starts = _encode(_text(source, options, clean), vocab, options.lines, length, folder)
    if source.sha256 != sha256:
        raise CharLMError(f"{name} changed while it was being read; start again when it is at rest")
    if not len(ids):
        raise CharLMError(f"{name} is empty: without the characters that the model never saw it holds no text")
    if odd is not None and (note := odd.note(name, unknown)):
        notes.append(note)
    return Corpus(name, ids, vocab, options, sha256, length, source, starts, notes)


def _symbols(text: Iterator[str]) -> str:
    """All characters that occur, in order of code point."""
    seen = np.zeros(0x110000, bool)
    small = np.zeros(256, np.int64)
    for chunk in text:
        points = codes(chunk)
        if points.dtype == np.uint8:
            small += np.bincount(points, minlength=256)
        else:
            seen[points] = True
    seen[:256] |= small > 0
    return "".join(map(chr, np.flatnonzero(seen)))


def _text(source: TextSource, options: CorpusOptions, clean: Callable[[str], str] | None = None) -> Iterator[str]:
    """The text of a corpus. clean: what becomes of a piece of it; it leaves newlines where `options.lines` is set."""
    clean = clean or str
    if not options.lines:
        yield from map(clean, source.chunks())
        return
    seen: set[int] = set()  # hashes of the items: 8 bytes each rather than the text
    for block in _line_blocks(source):
        items = clean("\n".join(map(str.strip, block))).split("\n")
        items = [item for item in map(str.strip, items) if item]
        if options.unique:
            items = [item for item in items if not ((key := hash(item)) in seen or seen.add(key))]
        if items:
            yield "\n".join(items) + "\n"


def _line_blocks(source: TextSource) -> Iterator[list[str]]:
    """Yields lists of whole lines; a line may span chunks and files."""
    rest = ""
    for chunk in source.chunks():
        lines = (rest + chunk).split("\n")
        rest = lines.pop()
        yield lines
    yield [rest]


def _encode(
    text: Iterator[str], vocab: Vocabulary, lines: bool, size: int, folder: Path | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids of a text, (N,), and with `lines` the start of every item, (K + 1,). size: bytes on disk."""
    newline = vocab.symbols.find("\n")
    starts, total = [np.zeros(1, np.int64)], 0
    parts: list[np.ndarray] = []
    store = _IdFile(folder) if size > MAPPED else None
    for chunk in text:
        ids = vocab.encode(chunk)
        if lines:
            starts.append(np.flatnonzero(ids == newline) + (total + 1))
        total += len(ids)
        parts.append(ids) if store is None else store.write(ids)
    where = np.concatenate(starts) if lines else None
    if store is None:
        return np.concatenate(parts) if parts else np.zeros(0, vocab.dtype), where
    return np.memmap(store.file, vocab.dtype, "r", shape=(total,)), where


class _IdFile:
    """An unlinked file of ids. folder: where it is; None for the system's temporary folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder or Path(tempfile.gettempdir())
        with self._explained():
            self.file = tempfile.TemporaryFile(dir=self.folder, prefix=".ids-", buffering=0)  # noqa: SIM115

    def write(self, ids: np.ndarray) -> None:
        rest = memoryview(ids).cast("B")
        with self._explained():
            while len(rest):
                rest = rest[self.file.write(rest) :]

    @contextmanager
    def _explained(self):
        try:
            yield
        except OSError as error:
            why = error.strerror or error
            raise CharLMError(
                f"cannot keep the encoded corpus in {self.folder}: {why}; free some space there"
            ) from error


def describe(corpus: Corpus) -> str:
    """`1,115,394 characters, 65 distinct`."""
    items = "" if corpus.starts is None else f" in {count(len(corpus.starts) - 1, 'item')}"
    return f"{count(len(corpus), corpus.vocab.unit)}{items}, {len(corpus.vocab):,} in the vocabulary"
