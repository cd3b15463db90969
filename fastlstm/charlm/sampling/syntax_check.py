"""Counts brackets, quotes and comments of generated code that are opened and closed, with a small lexer."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BRACKET = r"(?P<bracket>[()\[\]{}])"
_STRING = r"""(?P<string>"(?:[^\\\n"]|\\.)*(?P<end1>"?)|'(?:[^\\\n']|\\.)*(?P<end1b>'?))"""
_TRIPLE = (
    r"""(?P<triple>\"{3}(?:[^\\"]|\\.|"(?!""))*(?P<end3>(?:"{3})?)|'{3}(?:[^\\']|\\.|'(?!''))*(?P<end3b>(?:'{3})?))"""
)
_PYTHON = re.compile(rf"(?P<comment>\#[^\n]*)|{_TRIPLE}|{_STRING}|{_BRACKET}", re.S)
_C = re.compile(rf"(?P<comment>//[^\n]*)|(?P<triple>/\*.*?(?P<end3>\*/|\Z)(?P<end3b>))|{_STRING}|{_BRACKET}", re.S)
_PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass
class PairCount:
    """Counts of one kind of pair. closed: of those opened; stray: closing marks without an opening one."""

    name: str
    opened: int = 0
    closed: int = 0
    stray: int = 0

    @property
    def share(self) -> float:
        """Share of closed pairs among all; 1 if there are none."""
        return self.closed / max(1, self.opened + self.stray) if self.opened + self.stray else 1.0


def is_python(text: str) -> bool:
    """True if a text looks more like Python than like C."""
    head = text[:100_000]
    python = len(re.findall(r"^\s*(?:def |class |import |from |#|elif )", head, re.M))
    c = len(re.findall(r"//|/\*|;\s*$|^#include", head, re.M))
    return python >= c


def check_syntax(text: str) -> list[PairCount]:
    """Count the pairs of a text: brackets, strings, and triple-quoted strings (Python) or comments (C).

    A quote must be closed on its line. A bracket must be closed by its own kind, in the right order.
    """
    python = is_python(text)
    kinds = {"(": PairCount("( )"), "[": PairCount("[ ]"), "{": PairCount("{ }")}
    string, triple = PairCount("' ' and \" \""), PairCount('""" """' if python else "/* */")
    comment = PairCount("# …" if python else "// …")
    stack: list[str] = []
    for token in (_PYTHON if python else _C).finditer(text):
        if bracket := token["bracket"]:
            _bracket(bracket, stack, kinds)
        elif token["comment"]:
            comment.opened += 1
            comment.closed += 1  # a line ends it
        else:
            tally, ends = (triple, ("end3", "end3b")) if token["triple"] else (string, ("end1", "end1b"))
            tally.opened += 1
            tally.closed += any(token[end] for end in ends)
    return [*kinds.values(), string, triple, comment]


def _bracket(bracket: str, stack: list[str], kinds: dict[str, PairCount]) -> None:
    """Count one bracket. Brackets still open inside a pair that is closed count as never closed."""
    if bracket in kinds:
        kinds[bracket].opened += 1
        stack.append(bracket)
    elif (opener := _PAIRS[bracket]) in stack:
        while stack.pop() != opener:
            pass
        kinds[opener].closed += 1
    else:
        kinds[opener].stray += 1
