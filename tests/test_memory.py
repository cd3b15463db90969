"""Addresses for GPU kernels (fastlstm/memory.py): the type, size and memory that a kernel takes a tensor to have."""

from __future__ import annotations

import pytest
import torch

from fastlstm.memory import gpu_address


@pytest.fixture(autouse=True)
def pinned(monkeypatch):
    """Pinned memory of the host is in a GPU's reach, and this machine may have none."""
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)


def numbers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def shortened() -> torch.Tensor:
    tensor = numbers(3, 7)
    tensor.untyped_storage().resize_(4 * 20)
    return tensor


def test_the_address_of_what_a_kernel_expects():
    tensor = numbers(3, 7)
    assert gpu_address("h", tensor, 0, torch.float32, 21) == tensor.data_ptr()
    assert gpu_address("h", None, 0, torch.float32, 21) == 0


@pytest.mark.parametrize(
    ("tensor", "dtype", "count"),
    [
        pytest.param(numbers(3, 7), torch.bfloat16, 21, id="another type"),
        pytest.param(numbers(3, 7), torch.float32, 22, id="fewer elements"),
        pytest.param(numbers(3, 7), torch.float32, 20, id="more elements"),
        pytest.param(numbers(7, 3).t(), torch.float32, 21, id="transposed"),
        pytest.param(shortened(), torch.float32, 21, id="a storage that was made shorter"),
        pytest.param(torch.complex(numbers(21), numbers(21)).conj().imag, torch.float32, 21, id="negated"),
    ],
)
def test_anything_else_is_refused_in_one_line(tensor, dtype, count):
    with pytest.raises(
        RuntimeError, match=rf"^h is .*, expected a plain contiguous tensor of {count} elements of {dtype}"
    ):
        gpu_address("h", tensor, 0, dtype, count)
