"""The tool stands on fastlstm's public API alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastlstm.charlm

FOLDER = Path(fastlstm.charlm.__file__).parent
SOURCES = sorted(FOLDER.rglob("*.py"))


def foreign_imports(tree: ast.AST, depth: int) -> list[str]:
    """What a file imports of fastlstm beside `import fastlstm` and charlm itself. depth: folders below charlm."""
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [item.name for item in node.names if item.name.startswith("fastlstm.")]
        elif isinstance(node, ast.ImportFrom):
            inside = node.level and node.level <= depth + 1
            if not inside and (node.level or (node.module or "").split(".")[0] == "fastlstm"):
                imports.append("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("fastlstm._"):
            imports += [] if node.attr == "__version__" else [ast.unparse(node)]
    return imports


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_the_tool_imports_only_the_public_api(path):
    depth = len(path.relative_to(FOLDER).parts) - 1
    assert foreign_imports(ast.parse(path.read_text()), depth) == []


@pytest.mark.parametrize(
    "line",
    ["import fastlstm.ops", "from fastlstm import ops", "from ..nn import LSTM", "fastlstm._C", "from ... import x"],
)
def test_foreign_imports_are_found(line):
    assert foreign_imports(ast.parse(line), 0)


def test_used_names_are_public():
    used = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastlstm":
                used.add(node.attr)
    assert "TokenLSTM" in used
    assert all(hasattr(fastlstm, name) and not name.startswith("_") for name in used)


def test_used_names_are_listed_in_all():
    used = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastlstm":
                used.add(node.attr)
    assert used <= set(fastlstm.__all__)
