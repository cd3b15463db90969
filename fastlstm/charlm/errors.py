"""The exception of the character-model tool, and helpers that word its messages."""

from __future__ import annotations

import os
import reprlib
import shutil
import sys
from numbers import Integral, Real
from typing import Any


class CharLMError(Exception):
    """An error that the user can fix. The message names the value, what was expected and what to do; exit code 2."""


def plain_number(value: Any) -> Any:
    """numpy's integers and floats as Python's; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def brief(value: Any) -> str:
    """The repr of a value from a file, for a message: short, however long or deeply nested the value is."""
    return _short.repr(value)


def first_line(error: Exception) -> str:
    """The first line of an exception's text, at most 120 characters."""
    text = (str(error).splitlines() or [type(error).__name__])[0].strip()
    return text if len(text) <= 120 else text[:119] + "…"


def count(number: int, noun: str) -> str:
    """The number with thousands separators, and the noun in singular or plural: `3 lines`, `1 line`."""
    if number != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("ch") else "s")
    return f"{number:,} {noun}"


def shown(text: str, limit: int = 8) -> str:
    """The first `limit` distinct characters of a text, each as its repr: 'é' 'ü' '\\t' …"""
    distinct = sorted(set(text))
    return " ".join(map(repr, distinct[:limit])) + (" …" if len(distinct) > limit else "")


def command() -> str:
    """The command as the user called it (`fastlstm`, `python -m fastlstm` or a path), for suggestions in messages."""
    called = sys.argv[0]
    if os.path.basename(called) == "__main__.py":
        return "python -m fastlstm"
    if os.path.basename(called) != "fastlstm" or os.path.abspath(called) == shutil.which("fastlstm"):
        return "fastlstm"
    return os.path.relpath(called)
