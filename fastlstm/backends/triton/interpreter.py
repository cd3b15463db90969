"""What Triton's interpreter (TRITON_INTERPRET=1) lacks beside a newer numpy. `launch.py` applies it before the first launch."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def let_numbers_be_indices() -> None:
    """Make `range(n)` inside a kernel work with numpy 2.5.

    The interpreter holds a number as an array of one element, and before Triton 3.7 hands that to `int`, which numpy 2.5
    refuses.
    """
    interpreter = import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_and_add_index(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        set_attribute = scope[0].set_attr if scope else setattr  # a scope undoes it when the launch is over
        set_attribute(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_add_index
