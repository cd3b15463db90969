"""The one exception of the character-model tool: a single clear line for the person at the keyboard."""

from __future__ import annotations

import os
import shutil
import sys


class CharLMError(Exception):
    """Something the user can mend: names the thing, what was expected and what to do. The command exits with 2."""


def count(number: int, noun: str) -> str:
    """`3 lines`, `1 line`: the number with thousands separators and the noun's plural."""
    if number != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("ch") else "s")
    return f"{number:,} {noun}"


def shown(text: str, limit: int = 8) -> str:
    """The first `limit` distinct characters of a text, quoted so that a terminal shows them: 'é' 'ü' '\\t' …"""
    distinct = sorted(set(text))
    return " ".join(map(repr, distinct[:limit])) + (" …" if len(distinct) > limit else "")


def command() -> str:
    """`fastlstm` as it was called, so that what a message suggests can be typed as it stands."""
    called = sys.argv[0]
    if os.path.basename(called) == "__main__.py":
        return "python -m fastlstm"
    if os.path.basename(called) != "fastlstm" or os.path.abspath(called) == shutil.which("fastlstm"):
        return "fastlstm"
    return os.path.relpath(called)
