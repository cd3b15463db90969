"""Keyword arguments of the native entry points (csrc/bindings/arguments.h): a wrong name is an error, and nothing runs."""

from __future__ import annotations

import pytest
import torch

from fastlstm.backends import native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


def _forward() -> tuple[dict, list[torch.Tensor]]:
    """Arguments of one step of lstm_forward, and the tensors behind them."""
    T, B, H = 1, 2, 3
    shapes = {"h": (T, B, H), "h_n": (B, H), "c_n": (B, H), "x_gates": (T, B, 4 * H), "w_hh": (4 * H, H)}
    tensors = {name: torch.zeros(shape) for name, shape in (shapes | {"h0": (B, H), "c0": (B, H)}).items()}
    sizes = {"double": False, "T": T, "B": B, "H": H, "P": H, "reverse": False, "threads": 1}
    return sizes | tensors, [*tensors.values()]


def test_arguments_go_by_name_in_any_order() -> None:
    arguments, tensors = _forward()
    tensors[0].fill_(7)
    native.load().lstm_forward(**dict(reversed(arguments.items())))
    assert torch.equal(tensors[0], torch.zeros(1, 2, 3))


@pytest.mark.parametrize("name", [*_forward()[0]])
def test_missing_name_is_refused(name: str) -> None:
    arguments, tensors = _forward()
    del arguments[name]
    tensors[0].fill_(7)
    with pytest.raises(TypeError, match=f"lstm_forward needs the argument '{name}'"):
        native.load().lstm_forward(**arguments)
    assert (tensors[0] == 7).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_ih": 0}, "lstm_forward has no argument 'w_ih'"),
        ({"T": 1.0}, "'T' of the wrong type or range, expected an int of 64 bits"),
        ({"T": 2**63}, "'T' of the wrong type or range, expected an int of 64 bits"),
        ({"double": 0}, "'double' of the wrong type or range, expected a bool"),
    ],
    ids=str,
)
def test_wrong_name_or_type_is_refused(change: dict, message: str) -> None:
    arguments, _ = _forward()
    with pytest.raises(TypeError, match=message):
        native.load().lstm_forward(**arguments | change)


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="gemm takes keyword arguments only"):
        native.load().gemm(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))


def test_an_input_that_an_output_needs_may_not_be_missing() -> None:
    """An input that an output is computed from may not be missing."""
    arguments, _ = _forward()
    with pytest.raises(TypeError, match="lstm_forward needs the argument 'w_x'"):
        native.load().lstm_forward(**arguments, x=arguments["x_gates"], I=12)
    with pytest.raises(TypeError, match="lstm_step has 'layers' of the wrong type or range, expected a list of StepL"):
        native.load().lstm_step(bfloat16=False, layers=[1])
