"""sigmoid and tanh of the SIMD kernels: stated accuracy, limits, NaN; every instruction set."""

from __future__ import annotations

import pytest
import torch

from fastlstm.backends import native
from tests import isas

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
CODES = {"sigmoid": 0, "tanh": 1}
# units in the last place, as csrc/cpu/math.h states them
LARGEST = {
    ("sigmoid", torch.float32): 1.2,
    ("tanh", torch.float32): 1.6,
    ("sigmoid", torch.float64): 2.5,
    ("tanh", torch.float64): 1.0,
}


def apply(name: str, x: torch.Tensor) -> torch.Tensor:
    """Run the kernel's own function on a contiguous tensor."""
    y = torch.empty_like(x)
    native.load().unary(double=x.dtype == torch.float64, n=x.numel(), x=x, y=y, what=CODES[name])
    return y


@pytest.fixture(params=isas.FLOAT, autouse=True)
def isa(request: pytest.FixtureRequest):
    with isas.use(request.param):
        yield request.param


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_error_in_units_of_the_last_place(name: str, dtype: torch.dtype) -> None:
    dense = torch.linspace(-80, 80, 400_003, dtype=dtype)
    small = torch.logspace(-30, 2, 100_001, dtype=dtype).clamp(max=80)
    x = torch.cat([dense, small, -small])
    exact = getattr(torch, name)(x.double())
    spacing = exact.abs().clamp_min(torch.finfo(dtype).tiny) * torch.finfo(dtype).eps
    unit_of_torch = 1 if dtype == torch.float64 else 0  # there torch's own function is the judge, right to one unit
    assert ((apply(name, x).double() - exact).abs() / spacing).max() <= LARGEST[name, dtype] + unit_of_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_limits_are_exact_and_nan_stays_nan(dtype: torch.dtype) -> None:
    x = torch.tensor([-float("inf"), -1e30, -100.0, 0.0, 100.0, 1e30, float("inf"), float("nan")], dtype=dtype)
    sigmoid, tanh = apply("sigmoid", x), apply("tanh", x)
    assert sigmoid[:2].tolist() == [0.0, 0.0]  # torch's: what an infinite input is multiplied by
    assert sigmoid[2] < 1e-37
    assert sigmoid[3:7].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert tanh[:7].tolist() == [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0, 1.0]
    assert sigmoid[7].isnan()
    assert tanh[7].isnan()
