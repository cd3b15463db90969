"""Imports inside the tool point one way, those inside functions and for type checkers too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastlstm.charlm

FOLDER = Path(fastlstm.charlm.__file__).parent
# Every module or subpackage imports only from itself and from those before it.
ORDER = [
    "errors",
    "output",
    "data",
    "config",
    "model",
    "checkpoint",
    "evaluate",
    "ngram",
    "sampling",
    "lm",
    "analysis",
    "training",
    "page",
    "commands",
    "__init__",
]
MODULES = {path.relative_to(FOLDER).with_suffix("").parts: path for path in sorted(FOLDER.rglob("*.py"))}


def imported(parts: tuple[str, ...], path: Path) -> set[tuple[str, ...]]:
    """Modules of the tool that a module imports, each as its path below charlm."""
    imports = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(parts):
            base = (*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                imports.add(next(name for name in ((*base, alias.name), base, (*base, "__init__")) if name in MODULES))
    return imports


GRAPH = {parts: imported(parts, path) for parts, path in MODULES.items()}


@pytest.mark.parametrize("parts", MODULES, ids="/".join)
def test_imports_point_one_way(parts):
    later = [other for other in GRAPH[parts] if ORDER.index(other[0]) > ORDER.index(parts[0])]
    assert not later


def test_no_import_circle():
    done: set[tuple[str, ...]] = set()

    def visit(parts, trail):
        assert parts not in trail, " -> ".join("/".join(one) for one in (*trail, parts))
        if parts not in done:
            for other in GRAPH[parts]:
                visit(other, (*trail, parts))
            done.add(parts)

    for parts in GRAPH:
        visit(parts, ())
