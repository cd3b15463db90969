"""Glyphs: how the page shows a symbol in a cell of its grid, also control characters, marks and bytes."""

from __future__ import annotations

import unicodedata

_NAMED = {"\n": ("⏎", "newline"), "\t": ("⇥", "tab"), " ": ("␣", "space"), "\r": ("␍", "carriage return")}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # controls, marks of direction, surrogates, odd spaces


def glyph(symbol: str, of_bytes: bool) -> tuple[str, str, str]:
    """Glyph, name and style of a symbol.

    Args:
        symbol: one character
        of_bytes: True if it stands for the byte of its number

    Returns:
        The glyph, the name, and the style: `blank`, `code` (a number in small print), `wide` or empty.
    """
    point = ord(symbol)
    if symbol in _NAMED:
        return *_NAMED[symbol], "blank"
    if of_bytes and point > 0x7E:
        return f"{point:02x}", f"byte 0x{point:02x}", "code"
    number = f"U+{point:04X}"
    name = f"{number} {unicodedata.name(symbol, '')}".strip()
    category = unicodedata.category(symbol)
    if category in _HIDDEN:
        picture = chr(0x2400 + point) if point < 32 else "␡" if point == 0x7F else f"{point:04X}"
        return picture, name, "blank" if len(picture) == 1 else "code"
    if category.startswith("M"):
        return "◌" + symbol, name, ""
    return symbol, name, "wide" if unicodedata.east_asian_width(symbol) in "WF" else ""
