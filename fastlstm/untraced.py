"""What torch.compile must not look into: functions that hand addresses of tensors to native code.

Where Dynamo breaks a graph at a module, it goes on with the functions that the module calls, one by one. Compiled in
pieces, a tensor whose address was taken may be gone when the kernel reads it. So the functions of these modules run as
they are; the ops themselves are nodes of a graph as ever, for Dynamo never looks into those.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

import torch

_frames = getattr(torch._C._dynamo, "eval_frame", None)  # without importing Dynamo, which takes 1.8 s


def _skip(code: CodeType) -> None:
    """As torch._dynamo.skip_code does; what the function calls is skipped too where this torch can say so (2.7)."""
    if hasattr(_frames, "set_code_exec_strategy"):
        skip = _frames._FrameAction.SKIP
        _frames.set_code_exec_strategy(code, _frames._FrameExecStrategy(skip, skip))
    elif hasattr(_frames, "skip_code"):
        _frames.skip_code(code)


def leave_alone(*places: ModuleType | FunctionType) -> None:
    """Have Dynamo run the given functions, and all that are written in the given modules, as they are."""
    for place in places:
        for code in _codes(place, getattr(place, "__name__", "")):
            _skip(code)


def _codes(value: object, module: str) -> Iterator[CodeType]:
    """The code of a function, or of all functions of a module or class that are written in that module."""
    if isinstance(value, CodeType):
        yield value
        for constant in value.co_consts:  # comprehensions and functions inside
            if isinstance(constant, CodeType):
                yield from _codes(constant, module)
    elif isinstance(value, FunctionType):
        yield from _codes(value.__code__, module)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _codes(value.__func__, module)
    elif isinstance(value, property):
        yield from (code for f in (value.fget, value.fset) if f is not None for code in _codes(f, module))
    elif isinstance(value, ModuleType) or (isinstance(value, type) and value.__module__ == module):
        for item in vars(value).values():
            inside = getattr(item, "__module__", module) == module
            if not isinstance(item, ModuleType) and inside:
                yield from _codes(getattr(item, "__wrapped__", item), module)
