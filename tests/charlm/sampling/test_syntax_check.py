"""Brackets, quotes and comments of generated code, counted."""

from __future__ import annotations

from fastlstm.charlm.sampling.syntax_check import check_syntax


def tally(text):
    return {one.name: (one.opened, one.closed, one.stray) for one in check_syntax(text)}


def test_pairs_of_python_are_counted():
    code = 'def f(a[1], "x\\"(", \'it\'):  # ( "\n"""doc " \'(\' ""\\""" more""" {) ] "open\n\'\'\'never (closed'
    assert tally(code) == {
        "( )": (1, 1, 1),
        "[ ]": (1, 1, 1),
        "{ }": (1, 0, 0),
        "' ' and \" \"": (3, 2, 0),
        '""" """': (2, 1, 0),
        "# …": (1, 1, 0),
    }


def test_pairs_of_c_are_counted():
    code = "int f(int a) { // one (\n  /* two { */ return g(\"}\", '{'[0]; }\n/* open (;\n"
    assert tally(code) == {
        "( )": (2, 1, 0),
        "[ ]": (1, 1, 0),
        "{ }": (1, 1, 0),
        "' ' and \" \"": (2, 2, 0),
        "/* */": (2, 1, 0),
        "// …": (1, 1, 0),
    }


def test_the_standard_library_is_balanced():
    import textwrap

    with open(textwrap.__file__) as stream:
        assert all(one.share == 1 for one in check_syntax(stream.read()))
