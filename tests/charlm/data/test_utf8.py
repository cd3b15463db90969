"""The table of bytes that may follow one another in UTF-8."""

from __future__ import annotations

from fastlstm.charlm.data import utf8


def test_the_byte_table_is_utf8():
    """Every character of Unicode passes; of all two-byte strings just those that Python decodes or that go on."""
    for point in [*range(0x800), 0xFFF, 0x1000, 0xD7FF, 0xE000, 0xFFFD, 0x10000, 0x3FFFF, 0x40000, 0xFFFFF, 0x10FFFF]:
        state = utf8.START
        for byte in chr(point).encode():
            assert utf8.ALLOWED[state, byte]
            state = utf8.NEXT[state, byte]
        assert state == utf8.START
    for first in range(256):
        for second in range(256):
            allowed = utf8.ALLOWED[0, first] and utf8.ALLOWED[utf8.NEXT[0, first], second]
            data = bytes([first, second])
            try:
                data.decode()
                valid = True
            except UnicodeDecodeError as error:
                valid = "unexpected end" in error.reason
            assert allowed == valid, data
