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
def test_each_symbol_has_a_glyph_a_name_and_a_style(symbol, drawn, style):
    shown, name, shown_style = glyph(symbol, of_bytes=False)
    assert (shown, shown_style) == (drawn, style)
    assert name
    assert glyph("é", of_bytes=True) == ("e9", "byte 0xe9", "code")
