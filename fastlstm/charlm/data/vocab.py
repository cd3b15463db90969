"""The vocabulary: maps text to ids and back.

Text is a str. For a byte model (`--bytes`) each byte is the character of the same number (latin-1), so all other
modules work on str; only `to_text` and `from_text` convert.
"""

from __future__ import annotations

import numpy as np

from ..errors import CharLMError, count, shown

UNKNOWN = -1


def codes(text: str) -> np.ndarray:
    """Code points of a text as an unsigned array: one byte each where the text is ASCII, four elsewhere."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def from_codes(points: np.ndarray) -> str:
    """The text of some code points, (n,) integers; the inverse of `codes`."""
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


class Vocabulary:
    """An ordered set of symbols.

    Args:
        symbols: the characters; the id of each is its position
        bytes_: True if they stand for bytes (then all 256, in order)
    """

    def __init__(self, symbols: str, bytes_: bool = False):
        if len(set(symbols)) != len(symbols):
            raise CharLMError("the vocabulary names a character twice")
        self.symbols, self.bytes = symbols, bytes_
        points = codes(symbols).astype(np.int64)
        self._points = points
        self._table = np.full(int(points.max(initial=0)) + 2, UNKNOWN, np.int32)  # the last slot stays unknown
        self._table[points] = np.arange(len(symbols), dtype=np.int32)

    @classmethod
    def of_bytes(cls) -> Vocabulary:
        return cls("".join(map(chr, range(256))), bytes_=True)

    def extended(self, symbols: str) -> Vocabulary:
        """A vocabulary that also has these symbols: the new ones follow the old, in order of code point."""
        return Vocabulary(self.symbols + "".join(sorted(set(symbols) - set(self.symbols))), self.bytes)

    @property
    def unit(self) -> str:
        """Name of one symbol: `character` or `byte`."""
        return "byte" if self.bytes else "character"

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self.symbols

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and (self.symbols, self.bytes) == (other.symbols, other.bytes)

    __hash__ = None  # type: ignore[assignment]

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.dtype(np.uint8 if len(self) <= 1 << 8 else np.uint16 if len(self) <= 1 << 16 else np.uint32)

    def lookup(self, text: str) -> np.ndarray:
        """Ids of a text, (len(text),) int32; UNKNOWN for characters outside the vocabulary."""
        points = codes(text)
        if len(self._table) <= int(points.max(initial=0)):
            points = np.minimum(points, len(self._table) - 1)
        return self._table[points]

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """Ids of a text, (len(text),) of `dtype`.

        Args:
            text: to encode
            what: name of the text in error messages

        Raises:
            CharLMError: the text has characters outside the vocabulary.
        """
        ids = self.lookup(text)
        if len(ids) and ids.min() < 0:
            missing = "".join(text[i] for i in np.flatnonzero(ids < 0))
            raise CharLMError(
                f"{what} has {count(len(set(missing)), 'character')} that the model never saw: {shown(missing)}; "
                f"its vocabulary is {shown(self.symbols, 40)}"
            )
        return ids.astype(self.dtype)

    def decode(self, ids: np.ndarray) -> str:
        """The text of some ids, (n,) integers."""
        return from_codes(self._points[np.asarray(ids, np.int64)])

    def from_text(self, text: str) -> str:
        """Text as symbols: unchanged, or for a byte model its UTF-8 bytes as latin-1."""
        return text.encode().decode("latin-1") if self.bytes else text

    def to_text(self, symbols: str) -> str:
        """Symbols as text: unchanged, or for a byte model decoded as UTF-8 (U+FFFD for bytes that are not UTF-8)."""
        return symbols.encode("latin-1").decode("utf-8", "replace") if self.bytes else symbols
