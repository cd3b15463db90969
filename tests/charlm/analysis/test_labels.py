"""Labels: what a reader would mark in a text, character by character."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlstm.charlm.analysis.labels import labels, language

CODE = '''def f(a, b=[[1, 2], 3]):
    """Doc (string"""
    if a == "x": # a "quote"
        return 'it', 12

X = 1  # see http://www.example.com/x y
'''


def marks(text: str, name: str) -> str:
    """The label of each character as a digit, - where it means nothing."""
    label = next(label for label in labels(text) if label.name == name)
    where = np.ones(len(text), bool) if label.where is None else label.where
    return "".join(f"{min(9, int(v)):d}" if w else "-" for v, w in zip(label.values, where, strict=True))


def line(name: str, number: int, text: str = CODE) -> tuple[str, str]:
    start = sum(len(one) + 1 for one in text.split("\n")[:number])
    source = text.split("\n")[number]
    return source, marks(text, name)[start : start + len(source) + 1]


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("inside quotes", 1, "0000111111111111111100"),
        ("inside quotes", 2, "00000000000011000000000000000"),
        ("inside a long string", 1, "0000111111111111111100"),
        ("inside a long string", 2, "0" * 29),
        ("inside a one-line string", 1, "0" * 22),
        ("inside a one-line string", 2, "00000000000011000000000000000"),
        ("inside a comment", 2, "00000000000000000111111111110"),
        ("inside parentheses", 0, "0000011111111111111111000"),
        ("inside parentheses", 1, "0000000000000000000000"),
        ("inside [ ]", 0, "0000000000011111111110000"),
        ("inside [[ ]]", 0, "0000000000001111100000000"),
        ("inside a URL", 5, "0000000000000111111111111111111111111000"),
        ("inside an if", 2, "00000011111111100000000000000"),
        ("since the opening bracket", 0, "-----01234500123467899---"),
        ("since [[", 0, "------------01234--------"),
        ("position in line", 1, "1234567899999999999990"),
        ("indentation", 3, "123456788888888888888880"),
        ("nesting depth", 0, "0000011111123333322221000"),
        ("word start", 2, "00001001000001000001001000000"),
        ("after a newline", 1, "1000000000000000000000"),
        ("upper case", 1, "0000000100000000000000"),
        ("number", 3, "000000000000000000000110"),
        ("run of www", 5, "0000000000000000000011100000000000000000"),
    ],
)
def test_labels_of_code(name, number, expected):
    source, digits = line(name, number)
    assert digits == expected, f"\n{source}"


def test_the_language_of_a_text_is_recognised():
    assert language(CODE * 5) == "python"
    assert language("#include <a.h>\nint main() {\n  return 0; /* x */\n}\n") == "c"
    assert language('He said: "No."\nShe left.\n') == "prose"


def test_c_comments_quotes_and_conditions():
    text = '#include <a.h>\nint f() {\n  if (a("x)")) { /* (no */\n    b[1] = \'"\'; // "no"\n  }\n}\n'
    assert line("inside a comment", 2, text)[1] == "00000000000000000" + "11111111" + "00"
    assert line("inside quotes", 3, text)[1] == "0" * 11 + "11" + "0" * 11
    assert line("nesting depth", 4, text)[1] == "2211"
    assert line("inside an if", 2, text)[1] == "00000" + "1" * 8 + "0" * 14


def test_prose_quotes_end_with_the_paragraph():
    text = 'He said "one two\nthree" and “four” - "open\n\nnew (here) (there\n\nNot.\n'
    digits = marks(text, "inside quotes")
    assert digits[text.index('"one') : text.index('" and')] == "1" * len('"one two\nthree')
    assert digits[text.index('" and')] == "0"
    assert digits[text.index("“") : text.index("”")] == "1" * 5
    assert digits[text.index("new")] == "0"
    assert marks(text, "nesting depth")[text.index("Not")] == "0"
    assert "1" not in marks(text, "inside a comment")


def test_labels_of_a_piece_that_begins_in_a_docstring():
    inside = 'words of a docstring.\n    """\n    return 1\n\n' + CODE.replace("f(", "g(") * 3
    digits = marks(inside, "inside quotes")
    assert digits[0] == "1"
    assert digits[inside.index("return")] == "0"
    assert digits[inside.index("Doc (")] == "1"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_has_labels_of_its_length(text):
    for label in labels(text):
        assert label.values.shape == (len(text),)
        if label.binary:
            assert set(np.unique(label.values.astype(int))) <= {0, 1}
        assert label.where is None or label.where.shape == (len(text),)
