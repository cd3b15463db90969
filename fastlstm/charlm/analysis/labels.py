"""Labels of the characters of a text (inside quotes, line position, …), which cells are compared with.

A label at position t describes the text up to and including character t: it is on from an opening quote up to, but not
including, the closing one. Code is tokenised by its language: a quote in a comment opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..data.vocab import codes

_KEYWORD = re.compile(r"^[ \t]*(?:def |class |import |from |return\b|if |for |elif |else:|try:|with |@|self\.)", re.M)
_C_LINE = re.compile(r"//|/\*|;[ \t]*$|^#include|^[ \t]*}", re.M)
_PYTHON = re.compile(
    r"""(?P<comment>\#[^\n]*)|(?P<quote>\"{3}(?:[^\\]|\\.)*?(?:\"{3}|\Z)|'{3}(?:[^\\]|\\.)*?(?:'{3}|\Z)"""
    r"""|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?)""",
    re.S,
)
_C = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|(?P<quote>"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?)""", re.S
)
_PROSE = re.compile(
    r"""(?P<comment><!--.*?(?:-->|\Z))|(?P<quote>"(?:[^"\n]|\n(?![ \t]*\n))*"?|“(?:[^”\n]|\n(?![ \t]*\n))*”?)""", re.S
)
_TOKENS = {"python": _PYTHON, "c": _C, "prose": _PROSE}
_CLOSERS = ('"""', "'''", '"', "'", "”", "*/", "-->")
_BRACKETS = re.compile(
    r"[()\[\]{}]|\n[ \t]*\n(?=\S)"
)  # all brackets count as closed after a blank line before unindented text
_OPENER = {")": "(", "]": "[", "}": "{"}
_URL = re.compile(r"""(?:https?|ftp)://[^\s<>"'`)\]}]+|\bwww\.[^\s<>"'`)\]}]+""")
_WWW = re.compile(r"[wW]{3,}")
_IF = {
    "python": re.compile(r"^[ \t]*(?:el)?if\b(?P<inside>[^\n:]*)", re.M),
    "c": re.compile(r"\bif\s*(?P<inside>\((?:[^()\n]|\([^()\n]*\))*)"),
}


@dataclass(frozen=True)
class Label:
    """A property of each of the N characters of a text.

    Attributes:
        name: in tables and JSON
        values: (N,), 0 or 1 if `binary`
        binary: whether it is on or off, or a number
        where: (N,) bool, positions at which it is defined; None for all
    """

    name: str
    values: np.ndarray
    binary: bool = True
    where: np.ndarray | None = None


def language(text: str) -> str:
    """Language of a text, judged by its lines: `python`, `c` or `prose`."""
    head = text[:200_000]
    lines = max(1, sum(1 for line in head.split("\n") if line.strip()))
    python, c = len(_KEYWORD.findall(head)), len(_C_LINE.findall(head))
    if max(python, c) < 0.08 * lines:
        return "prose"
    return "python" if python >= c else "c"


def labels(text: str) -> list[Label]:
    """All labels of a text of N characters, including those that never occur in it."""
    lang = language(text)
    quoted, comment, triple, bare = _tokens(text, lang)
    nesting = _nesting(bare)
    at = _distance_since(codes(text) == ord("\n"))
    pattern = _IF.get(lang)
    inside_if = _cover(len(text), (m.span("inside") for m in pattern.finditer(bare))) if pattern else 0 * quoted
    alpha, upper, digit = (_char_test(text, test) for test in (str.isalpha, str.isupper, str.isdigit))
    newline = codes(text) == ord("\n")
    return [
        Label("inside quotes", quoted),
        Label("inside a one-line string", quoted & ~triple if triple.any() else 0 * quoted),
        Label("inside a long string", triple),
        Label("inside a comment", comment),
        Label("inside parentheses", nesting.round > 0),
        Label("inside [ ]", nesting.square > 0),
        Label("inside [[ ]]", nesting.double > 0),
        Label("inside a URL", _cover(len(text), (m.span() for m in _URL.finditer(text)))),
        Label("inside an if", inside_if),
        Label("since the opening bracket", nesting.since, False, nesting.depth > 0),
        Label("since [[", nesting.since, False, nesting.double > 0),
        Label("position in line", at, False),
        Label("indentation", _indentation(text, at), False),
        Label("nesting depth", nesting.depth, False),
        Label("word start", alpha & ~_previous(alpha)),
        Label("after a newline", _previous(newline)),
        Label("upper case", upper),
        Label("number", digit),
        Label("run of www", _cover(len(text), (m.span() for m in _WWW.finditer(text)))),
    ]


def _tokens(text: str, lang: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Inside quotes, comments and triple quotes, (N,) bool each, and the text with those blanked out except line ends."""
    pattern, shift = _TOKENS[lang], 0
    if lang == "python" and _starts_quoted(text):
        text, shift = '"""' + text, 3
    spans: dict[str, list[tuple[int, int]]] = {"quote": [], "comment": [], "triple": []}
    bare, last = [], 0
    for match in pattern.finditer(text):
        start, end = match.span()
        span = (start, _closed(match.group(), start))
        spans[match.lastgroup].append(span)
        if match.group().startswith(_CLOSERS[:2]):
            spans["triple"].append(span)
        bare += [text[last:start], re.sub(r"[^\n]", "\0", match.group())]
        last = end
    if lang == "prose":
        return *(_cover(len(text), spans[name]) for name in spans), text  # brackets in quotations are brackets
    bare.append(text[last:])
    return *(_cover(len(text), spans[name])[shift:] for name in spans), "".join(bare)[shift:]


def _closed(token: str, start: int) -> int:
    """End of the span in which a token is open: before the last character of its closing mark, if it has one."""
    closed = any(token.endswith(mark) and len(token) >= 2 * len(mark) for mark in _CLOSERS if token[0] not in "#/<")
    closed = closed or (token[0] in "/<" and token.endswith(_CLOSERS[-2:]))
    return start + len(token) - closed


def _starts_quoted(text: str) -> bool:
    '''True if a piece of Python begins inside a """ string: more keywords are then outside of strings.'''

    def outside(piece: str) -> int:
        return len(_KEYWORD.findall(_PYTHON.sub(lambda match: re.sub(r"[^\n]", "\0", match.group()), piece)))

    return outside('"""' + text[:20_000]) > outside(text[:20_000])


@dataclass
class _Nesting:
    """Numbers of open brackets after each character, (N,) each.

    depth: of all kinds; round: (; square: [; double: [[; since: characters since the innermost one opened.
    """

    depth: np.ndarray
    round: np.ndarray
    square: np.ndarray
    double: np.ndarray
    since: np.ndarray


def _nesting(text: str) -> _Nesting:
    rows = np.array([(0, 0, 0, 0, 0, 0), *_bracket_states(text)], np.int64)
    lengths = np.diff(np.append(rows[:, 0], len(text)))
    depth, around, square, double, opened = (np.repeat(rows[:, k], lengths) for k in range(1, 6))
    since = np.where(depth > 0, np.arange(len(text)) - opened, 0)
    return _Nesting(depth, around, square, double, since)


def _bracket_states(text: str) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yields after every bracket: its position, open brackets of all kinds, of (, [ and [[, position of the innermost."""
    stack: list[tuple[str, int]] = []
    for match in _BRACKETS.finditer(text):
        at, sign = match.start(), match.group()[0]
        if sign == "\n":
            stack.clear()
        elif sign in _OPENER:
            if any(opener[0] == _OPENER[sign] for opener, _ in stack):
                while stack.pop()[0][0] != _OPENER[sign]:
                    pass
        else:
            doubled = sign == "[" and stack and stack[-1] == ("[", at - 1)
            stack.append(("[[" if doubled else sign, at))
        openers = [opener for opener, _ in stack]
        square = sum(opener[0] == "[" for opener in openers)
        yield at, len(stack), openers.count("("), square, openers.count("[["), stack[-1][1] if stack else 0


def _indentation(text: str, at: np.ndarray) -> np.ndarray:
    """Blanks at the start of the line, as far as the line was read, (N,). at: position in the line."""
    points = codes(text)
    blank = (points == ord(" ")) | (points == ord("\t")) | (points == ord("\n"))
    line = np.cumsum(points == ord("\n"))
    first = np.full(line[-1] + 1 if len(line) else 1, np.iinfo(np.int64).max)  # where each line's text begins
    words = np.flatnonzero(~blank)
    np.minimum.at(first, line[words], words)
    return np.where(np.arange(len(text)) < first[line], at, first[line] - np.arange(len(text)) + at - 1)


def _distance_since(mark: np.ndarray) -> np.ndarray:
    """Characters since the last True, 0 at it, (N,) int64; position -1 counts as True."""
    positions = np.arange(len(mark))
    return positions - np.maximum.accumulate(np.where(mark, positions, -1))


def _previous(values: np.ndarray) -> np.ndarray:
    """The value one character earlier, false for the first."""
    return np.concatenate([[False], values])[: len(values)]


def _char_test(text: str, test: Callable[[str], bool]) -> np.ndarray:
    """The result of `test` for each character, (N,) bool; it is called once for each distinct one."""
    distinct, which = np.unique(codes(text), return_inverse=True)
    return np.array([test(chr(point)) for point in distinct], bool)[which]


def _cover(n: int, spans: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> np.ndarray:
    """Positions of 0 … n - 1 that are in any span, (n,) bool."""
    edges = np.zeros(n + 1, np.int64)
    for start, end in spans:
        edges[start] += 1
        edges[end] -= 1
    return np.cumsum(edges[:-1]) > 0
