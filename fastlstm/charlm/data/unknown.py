"""What is done with characters that a vocabulary does not have: `error`, `skip` or `add`.

    error   the text is refused, the characters are named
    skip    they are left out, as if the text did not have them
    add     the vocabulary grows by them, at its end, so that all ids stay what they were (the model must grow with it)

`corpus.load` does this for a corpus of any length, `encode` here for a text in memory. A byte vocabulary has all 256
symbols, so nothing is unknown to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import CharLMError, count, shown
from .vocab import Vocabulary, codes, from_codes

POLICIES = ("error", "skip", "add")


@dataclass(frozen=True)
class Encoded:
    """Ids of a text.

    Attributes:
        ids: (n,) of `vocab.dtype`
        vocab: that encodes it: the one that was given, or with `add` the one that has grown
        kept: (len(symbols),) bool, the symbols of the text that have an id in `ids`
        note: for the user, of what was skipped or added; None where nothing was
    """

    ids: np.ndarray
    vocab: Vocabulary
    kept: np.ndarray
    note: str | None = None


def check_policy(policy: str, allowed: Sequence[str] = POLICIES) -> None:
    """Raises CharLMError for a policy that is not one of `allowed`."""
    if policy not in allowed:
        raise CharLMError(f"--unknown is {policy!r}, expected {', '.join(allowed)}")


def fitting(vocab: Vocabulary, symbols: str, policy: str = "error", what: str = "the text") -> Vocabulary:
    """The vocabulary to encode a text with.

    Args:
        vocab: of the model
        symbols: that occur in the text, each at least once
        policy: one of POLICIES
        what: name of the text in error messages

    Returns:
        `vocab`, or with `add` a longer one that begins with it.

    Raises:
        CharLMError: a symbol is unknown (`error`), or all of them are (`skip`).
    """
    check_policy(policy)
    known = vocab.lookup(symbols) >= 0
    if known.all():
        return vocab
    if policy == "error":
        vocab.encode(symbols, what)  # raises
    if policy == "add":
        return vocab.extended(symbols)
    if not known.any():
        raise CharLMError(f"{what} has no character that the model knows: nothing is left with --unknown skip")
    return vocab


def encode(vocab: Vocabulary, symbols: str, policy: str = "error", what: str = "the text") -> Encoded:
    """Map a text in memory to ids.

    Args:
        vocab: of the model
        symbols: the text, as `vocab.from_text` gives it
        policy: one of POLICIES
        what: name of the text in messages

    Raises:
        CharLMError: as for `fitting`.
    """
    whole = fitting(vocab, symbols, policy, what) if symbols else vocab
    ids = whole.lookup(symbols)
    kept = ids >= 0
    odd = Unknown(vocab)
    odd.known(symbols)
    return Encoded(ids[kept].astype(whole.dtype), whole, kept, odd.note(what, policy))


class Unknown:
    """Finds, counts and drops the characters of a text that a vocabulary does not have, piece by piece."""

    def __init__(self, vocab: Vocabulary):
        self.vocab, self.number, self.kinds = vocab, 0, set()

    def known(self, text: str) -> np.ndarray:
        """Which characters of a piece are known, (len(text),) bool; the others are counted."""
        known = self.vocab.lookup(text) >= 0
        if not known.all():
            self.number += int(np.count_nonzero(~known))
            self.kinds.update(from_codes(np.unique(codes(text)[~known])))
        return known

    def skip(self, text: str) -> str:
        """The piece without its unknown characters."""
        known = self.known(text)
        return text if known.all() else from_codes(codes(text)[known])

    def add(self, text: str) -> str:
        """The piece as it is; its unknown characters are counted."""
        self.known(text)
        return text

    def action(self, policy: str) -> Callable[[str], str] | None:
        """What becomes of each piece of a text; None with `error`, where `fitting` has refused such a text."""
        return {"skip": self.skip, "add": self.add, "error": None}[policy]

    def note(self, what: str, policy: str) -> str | None:
        """`the text has 2 characters that the model never saw ('é' 'ü'): left out`; None without any."""
        if not self.number:
            return None
        done = "left out" if policy == "skip" else "added to its vocabulary"
        names = shown("".join(self.kinds))
        return f"{what} has {count(self.number, 'character')} that the model never saw ({names}): {done}"
