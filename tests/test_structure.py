"""The tree as docs/architecture.md tells it: no import circle, charlm on the public API alone, private torch in one file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fastlstm

PACKAGE = Path(fastlstm.__file__).parent
ROOT = PACKAGE.parent


def _files(package: str) -> dict[str, Path]:
    """The modules of a package, by name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


FILES = _files("fastlstm")


def _imported(name: str, path: Path, known: dict[str, Path] = FILES) -> Iterator[str]:
    """What a module imports, at its top and in its functions: the module that each name comes from."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in (a for a in node.names if a.name != "_C"):  # compiled
                inside = f"{base}.{alias.name}"
                yield inside if inside in known else base


@cache
def _graph(package: str = "fastlstm") -> dict[str, frozenset[str]]:
    files = _files(package)
    return {
        name: frozenset(to for to in _imported(name, path, files) if to in files and to != name)
        for name, path in files.items()
    }


def circle_in(graph: dict[str, frozenset[str]]) -> list[str] | None:
    """A circle of imports, or None."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for to in sorted(graph[name]):
            if circle := walk(to, [*path, name]):
                return circle
        done.add(name)
        return None

    return next((circle for name in graph if (circle := walk(name, []))), None)


@pytest.mark.parametrize("package", ["fastlstm", "benchmarks", "tools"])
def test_no_circle_of_imports(package: str) -> None:
    """Imports inside functions, and for type checkers, count too: they are how circles hide."""
    assert len(_graph(package)) > 15
    assert circle_in(_graph(package)) is None


def test_a_circle_is_found() -> None:
    graph = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"b"})}
    assert circle_in(graph) == ["b", "c", "b"]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("fastlstm.charlm")])
def test_charlm_uses_the_public_api_alone(name: str) -> None:
    """`import fastlstm` and names of its __all__; nothing of the package's insides."""
    insides = {to for to in _imported(name, FILES[name]) if to.startswith("fastlstm.")}
    assert {to for to in insides if not to.startswith("fastlstm.charlm") and to != "fastlstm._version"} == set()
    used = set(re.findall(r"\bfastlstm\.(\w+)", FILES[name].read_text(encoding="utf-8")))
    code = ast.parse(FILES[name].read_text(encoding="utf-8"))
    used &= {
        node.attr
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastlstm"
    }
    assert used <= {*fastlstm.__all__, "charlm"}, used - set(fastlstm.__all__)


def test_modules_and_ops_know_no_kernel_but_the_cpus() -> None:
    """Only a backend knows its kernels; the one fused route asks the CPU backend's Function."""
    for name, imports in _graph().items():
        if (
            name.startswith(("fastlstm.modules", "fastlstm.ops", "fastlstm.charlm"))
            and name != "fastlstm.modules.warmup"
        ):
            assert not {
                to for to in imports if to.startswith(("fastlstm.backends.cuda", "fastlstm.backends.triton"))
            }, name


_PRIVATE = re.compile(r"torch\._(?!_)|_SingleLevelFunction|_current_level|torch\.autograd\._|torch\._VF")


@pytest.mark.parametrize("name", [name for name in FILES if name != "fastlstm._torch_compat"])
def test_private_names_of_torch_live_in_one_file(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if _PRIVATE.search(line.split("#")[0])]


_ALLOCATE = {*("empty", "zeros", "ones", "full", "tensor", "arange", "linspace", "eye"), *("rand", "randn", "randint")}
_KEEP_TYPE = {"as_tensor"}  # what is given has one


def test_addresses_are_taken_in_one_place() -> None:
    """Tensors go to native code as they are; GPU launchers get theirs from fastlstm/memory.py, which checks them."""
    takers = {name for name, path in FILES.items() if "data_ptr" in path.read_text(encoding="utf-8")}
    assert takers == {"fastlstm.memory", "fastlstm._torch_compat"}


def test_allocations_state_type_and_device() -> None:
    """A default type or device of the user's would change what kernels get by address."""
    assert len(FILES) > 100
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = ast.unparse(node.func).removeprefix("torch.") if isinstance(node, ast.Call) else ""
            if made in _ALLOCATE | _KEEP_TYPE and ast.unparse(node.func) != made:
                stated = {keyword.arg for keyword in node.keywords}
                expected = {"device"} if made in _KEEP_TYPE else {"dtype", "device"}
                assert None in stated or expected <= stated, f"{path}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("package", ["fastlstm", "benchmarks", "tools"])
def test_no_assert_decides_anything_outside_the_tests(package: str):
    """`python -O` leaves asserts out, and one without a text raises an error that says nothing."""
    asserts = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _files(package).values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and not path.name.startswith(("test_", "conftest"))
    ]
    assert asserts == []
