"""Every call of this project's own functions and classes passes arguments that they take.

Much of the tree runs only where a GPU is, or in the slow suite; a call there that a changed signature left behind would
wait for that day. The signatures are asked, nothing is run.
"""

import ast
import importlib
import inspect
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fastlstm", "tools", "benchmarks")
FILES = sorted(
    p
    for package in PACKAGES
    for p in (ROOT / package).rglob("*.py")
    if p.name != "__main__.py" and not p.name.startswith("test_")  # benchmarks/test_*.py need the marks of `make bench`
)
ABSENT = {"jax", "onnx", "onnxruntime", "tf2onnx"}  # optional competitors of the benchmarks


def _module(path: Path) -> types.ModuleType:
    parts = path.relative_to(ROOT).with_suffix("").parts
    try:
        return importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    except ModuleNotFoundError as error:
        if error.name not in ABSENT:
            raise
        pytest.skip(f"{error.name} is not installed")


def _names(tree: ast.AST, module: types.ModuleType) -> dict[str, object]:
    """What a name means in this file: the module's own, and what functions import for themselves."""
    names = dict(vars(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            imported = importlib.import_module(node.module)
            for alias in node.names:
                names.setdefault(alias.asname or alias.name, getattr(imported, alias.name, None))
    local = {a.arg for n in ast.walk(tree) if isinstance(n, ast.arguments) for a in (*n.args, *n.kwonlyargs)}
    local |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return {name: value for name, value in names.items() if name not in local}


def _callee(call: ast.Call, names: dict[str, object]) -> object:
    """The function or class of this project that a call names, or None."""
    callee = None
    if isinstance(call.func, ast.Name):
        callee = names.get(call.func.id)
    elif isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        owner = names.get(call.func.value.id)
        callee = getattr(owner, call.func.attr, None) if inspect.ismodule(owner) else None
    in_project = (getattr(callee, "__module__", None) or "").split(".")[0] in PACKAGES
    takes_anything = inspect.isclass(callee) and issubclass(callee, BaseException)
    return (
        callee
        if in_project and not takes_anything and (inspect.isfunction(callee) or inspect.isclass(callee))
        else None
    )


def check_calls(source: str, module: types.ModuleType) -> tuple[int, list[str]]:
    """How many calls were checked, and those whose arguments the callee does not take."""
    tree = ast.parse(source)
    names, checked, errors = _names(tree, module), 0, []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        callee = _callee(call, names)
        if callee is None:
            continue
        signature = inspect.signature(callee)
        starred = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
        bind = signature.bind_partial if starred else signature.bind
        plain = [a for a in call.args if not isinstance(a, ast.Starred)]
        checked += 1
        try:
            bind(*plain, **{k.arg: None for k in call.keywords if k.arg})
        except TypeError as error:
            errors.append(f"line {call.lineno}: {ast.unparse(call)[:80]}: {error}")
    return checked, errors


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_calls_fit_their_functions(path):
    _, errors = check_calls(path.read_text(), _module(path))
    assert not errors, "\n".join(errors)


def test_a_call_that_does_not_fit_is_found():
    module = importlib.import_module("fastlstm.backends.triton.planner")
    argument_lists = ('"step", "half", None, None, 0, 0.0, ()', '"step", "half", None, None, 0, ()', "*x, size=3")
    source = "\n".join(f"TritonPlan({arguments})" for arguments in argument_lists)
    checked, errors = check_calls(source, module)
    assert checked == 3
    assert [line.split(":")[0] for line in errors] == ["line 1", "line 3"]
