"""Products of large matrices: by the native GEMM (csrc/cpu/gemm.h) on the CPU, elsewhere by torch's own.

They are the input projection, its gradient and the weight gradients. Torch's BLAS leaves a fifth of an AVX2 core and
more than half of an AVX-512 core unused on AMD's processors (benchmarks/results has the figures).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip, is_recorded
from fastlstm.backends import native
from fastlstm.memory import empty

REALS = (torch.float32, torch.float64)


def matmul(a: Tensor, b: Tensor, add_to: Tensor | None = None) -> Tensor:
    """Return a @ b for matrices, added in place to `add_to` where that is given.

    Differentiable and traceable: the native GEMM runs only where nobody records operations.
    """
    if is_recorded(a, b) or not takes(a):
        if add_to is None:
            return a @ b
        return add_to + a @ b if is_recorded(add_to, a, b) else add_to.addmm_(a, b)
    return native_matmul(a, b, add_to)


def native_matmul(a: Tensor, b: Tensor, add_to: Tensor | None = None) -> Tensor:
    """`matmul` by the native GEMM, for plain tensors that it `takes`; any strides."""
    out = empty((a.shape[0], b.shape[1]), a.dtype) if add_to is None else add_to
    native.load().gemm(
        double=a.dtype == torch.float64,
        c=out,
        a=a,
        b=b,
        accumulate=add_to is not None,
        threads=torch.get_num_threads(),
    )
    return out


def takes(a: Tensor) -> bool:
    """Whether the native GEMM takes the type and device of `a`."""
    return a.dtype in REALS and a.device.type == "cpu" and native.unavailable() is None


dynamo_skip(__name__)
