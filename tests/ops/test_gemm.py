"""The native GEMM against float64 on every instruction set, whatever the strides; and when it steps aside."""

from __future__ import annotations

import pytest
import torch

from fastlstm import _torch_compat
from fastlstm.backends import native
from fastlstm.ops.gemm import matmul, native_matmul, takes
from tests import isas

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
SIZES = [
    (1, 1, 1),
    (3, 7, 129),
    (65, 129, 7),
    (16, 64, 300),
    (97, 515, 33),
    (0, 5, 3),
    (5, 0, 3),
    (5, 3, 0),
    (400, 70, 1100),
]
LAYOUTS = ["rows", "columns", "spaced", "offset"]


@pytest.fixture(params=isas.FLOAT)
def isa(request: pytest.FixtureRequest):
    """Force one instruction set for a test."""
    with isas.use(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest):
    """Run with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _matrix(rows: int, columns: int, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """A random matrix whose neighbours in memory are NaN where its layout has neighbours."""
    if layout == "columns":
        return torch.randn(columns, rows, dtype=dtype).t()
    if layout == "spaced":
        room = torch.full((2 * rows, 3 * columns), torch.nan, dtype=dtype)
        return room[::2, ::3].copy_(torch.randn(rows, columns, dtype=dtype))
    room = torch.full((rows, columns + (5 if layout == "offset" else 0)), torch.nan, dtype=dtype)
    return room[:, room.shape[1] - columns :].copy_(torch.randn(rows, columns, dtype=dtype))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_of_every_layout(size: tuple, dtype: torch.dtype, isa: str, threads: int) -> None:
    M, N, K = size
    for a_layout in LAYOUTS:
        for b_layout in LAYOUTS:
            a, b = _matrix(M, K, a_layout, dtype), _matrix(K, N, b_layout, dtype)
            exact, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
            bound = (K + 2) * torch.finfo(dtype).eps  # of any order of summation; more than float64's own error
            product = native_matmul(a, b)
            assert ((product.double() - exact).abs() <= bound * scale + 1e-300).all(), (a_layout, b_layout)
            before = torch.randn(M, N + 2, dtype=dtype)
            out = before.clone()
            native_matmul(a, b, out[:, 1:-1])
            assert torch.equal(out[:, [0, -1]], before[:, [0, -1]])
            summed = before[:, 1:-1].double() + exact
            assert ((out[:, 1:-1].double() - summed).abs() <= bound * (scale + before[:, 1:-1].abs()) + 1e-300).all()


def test_the_error_is_at_most_twice_torchs(isa: str) -> None:
    a, b = torch.randn(300, 2500), torch.randn(2500, 129)
    exact = a.double() @ b.double()
    assert (native_matmul(a, b) - exact).norm() <= 2 * (a @ b - exact).norm()


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    a, b, products = torch.randn(129, 700), torch.randn(700, 515), []
    before = torch.get_num_threads()
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        products.append(native_matmul(a, b))
    torch.set_num_threads(before)
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[0], products[2])


def test_torch_multiplies_what_the_native_gemm_does_not_take() -> None:
    a, b = torch.randn(7, 3, requires_grad=True), torch.randn(3, 65)
    matmul(a, b).sum().backward()
    assert torch.allclose(a.grad, b.sum(1).expand(7, 3))
    products = torch.func.vmap(matmul)(torch.randn(4, 7, 3), torch.randn(4, 3, 65))
    assert products.shape == (4, 7, 65)
    with torch.no_grad():
        assert torch.allclose(matmul(torch._neg_view(a), b), -(a @ b), atol=1e-5)
        assert torch.allclose(matmul(a, b, torch.ones(7, 65)), 1 + a @ b, atol=1e-5)
    assert not takes(torch.randn(3, 3).bfloat16())
    assert not takes(torch.empty(3, 3, device="meta"))


@pytest.mark.parametrize("bits", [repr, getattr(torch._C.DispatchKeySet, "raw_repr", repr)], ids=["names", "number"])
def test_plain_tensors_are_told_by_the_names_or_the_number_of_their_keys(
    bits: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch 2.4 has only the names."""
    monkeypatch.setattr(_torch_compat, "_bits", bits)
    monkeypatch.setattr(_torch_compat, "_CPU_KEYS", _torch_compat._plain_keys.__wrapped__("cpu"))
    for is_plain in (_torch_compat.is_plain, _torch_compat.is_plain_cpu):
        x = torch.randn(3, 2)
        assert is_plain(x)
        assert is_plain(torch.nn.Parameter(x))
        assert not is_plain(torch.randn(2, dtype=torch.complex64).conj())
        assert not is_plain(torch.randn(2, dtype=torch.complex64).conj().imag)  # lazily negated
    assert torch.equal(torch.vmap(lambda v: v * (1 - _torch_compat.is_plain(v)))(x), x)
