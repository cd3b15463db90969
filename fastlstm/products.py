"""Products of large matrices on the CPU by the native GEMM (csrc/cpu/gemm.h), elsewhere by torch's own.

They are the input projection, its gradient and the weight gradients. Torch's BLAS leaves a fifth of an AVX2 core and
more than half of an AVX-512 core unused on AMD's processors (benchmarks/results has the figures).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fastlstm import native

_PLAIN = (Tensor, torch.nn.Parameter)
REALS = (torch.float32, torch.float64)


def product(a: Tensor, b: Tensor, add_to: Tensor | None = None) -> Tensor:
    """Return a @ b for matrices, added in place to `add_to` where that is given.

    Differentiable and traceable: the native GEMM runs only where nobody records what happens.
    """
    if not (unrecorded(a, b) and runs(a)):
        if add_to is None:
            return a @ b
        return add_to.addmm_(a, b) if unrecorded(add_to, a, b) else add_to + a @ b
    return native_product(a, b, add_to)


def native_product(a: Tensor, b: Tensor, add_to: Tensor | None = None) -> Tensor:
    """`product` by the native GEMM, for plain tensors that it `runs` on; any strides."""
    out = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype) if add_to is None else add_to
    (a_row, a_column), (b_row, b_column) = a.stride(), b.stride()
    native.load().gemm(
        double=a.dtype == torch.float64,
        c=out.data_ptr(),
        a=a.data_ptr(),
        b=b.data_ptr(),
        M=a.shape[0],
        N=b.shape[1],
        K=a.shape[1],
        c_row=out.stride(0),
        a_row=a_row,
        a_column=a_column,
        b_row=b_row,
        b_column=b_column,
        accumulate=add_to is not None,
        threads=torch.get_num_threads(),
    )
    return out


def runs(a: Tensor) -> bool:
    """Whether the native GEMM takes the type and device of `a`."""
    return a.dtype in REALS and a.device.type == "cpu" and native.why_not() is None


_bits = getattr(torch._C.DispatchKeySet, "raw_repr", repr)  # torch 2.4 has no raw_repr, and writes the keys' names


def _keys() -> int | str:
    return _bits(torch._C._dispatch_keys(torch.empty(0)))


_KEYS = {_keys()}
with torch.inference_mode():
    _KEYS.add(_keys())


def is_plain(v: Tensor) -> bool:
    """Whether its address holds its numbers: no subclass, no lazily negated view, not batched by autograd's own vmap."""
    return type(v) in _PLAIN and _bits(torch._C._dispatch_keys(v)) in _KEYS


@cache
def _keys_on_gpu() -> frozenset[int | str]:
    found = {_bits(torch._C._dispatch_keys(torch.empty(0, device="cuda")))}
    with torch.inference_mode():
        found.add(_bits(torch._C._dispatch_keys(torch.empty(0, device="cuda"))))
    return frozenset(found)


def is_plain_there(v: Tensor) -> bool:
    """`is_plain` for a tensor on the CPU or a CUDA device."""
    if type(v) not in _PLAIN:
        return False
    keys = _bits(torch._C._dispatch_keys(v))
    return keys in _KEYS or (v.is_cuda and keys in _keys_on_gpu())


def unrecorded(*values: Tensor | None) -> bool:
    """Whether nobody records what happens (autograd, torch.func, modes) and all values are plain tensors."""
    return (
        not torch.is_grad_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and all(v is None or is_plain_there(v) for v in values)
    )


def unwatched() -> bool:
    """Whether nobody looks at torch's operations: no transform, mode, tracer, forward gradients or profiler."""
    return not (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.autograd._profiler_enabled()
    )
