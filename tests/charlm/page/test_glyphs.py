"""How symbols are drawn on the page."""

from __future__ import annotations

import pytest

from fastlstm.charlm.page.glyphs import glyph


@pytest.mark.parametrize(
    ("symbol", "drawn", "style"),
    [
        ("a", "a", ""),
        ("\n", "⏎", "blank"),
        (" ", "␣", "blank"),
        ("\x1b", "␛", "blank"),
        ("\x85", "0085", "code"),
        ("\u202e", "202E", "code"),
        ("\ud800", "D800", "code"),
        ("\u0301", "◌\u0301", ""),
        ("漢", "漢", "wide"),
        ("👩", "👩", "wide"),
    ],
)
def test_glyphs(symbol, drawn, style):
    got, name, kind = glyph(symbol, of_bytes=False)
    assert (got, kind) == (drawn, style)
    assert name
    assert glyph("é", of_bytes=True) == ("e9", "byte 0xe9", "code")
