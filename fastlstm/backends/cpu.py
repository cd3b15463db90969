"""The CPU backend: the input product by torch's BLAS, the recurrence by the native kernels (csrc/cpu).

Half types run through float32: inputs are widened, h is rounded to the type at every step by the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import native
from fastlstm.products import native_product

NAME = "cpu"
_ROUNDING = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}
_HALF = (torch.bfloat16, torch.float16)


def why_not(spec) -> str | None:
    """Return why the native CPU kernels cannot run this call, or None."""
    if spec.device.type != "cpu":
        return f"tensors are on {spec.device}; the cpu backend takes CPU tensors"
    if spec.dtype not in _ROUNDING:
        return f"dtype is {spec.dtype}; the cpu backend takes float32, float64, bfloat16 and float16"
    return native.why_not()


def plan(spec) -> str:
    """Return one line on what would run."""
    isa = native.load().isa()
    kind = "rounded through float32" if spec.dtype in _HALF else str(spec.dtype).removeprefix("torch.")
    return f"cpu: fused {isa} recurrence, {kind}, up to {torch.get_num_threads()} threads"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _real(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _shape(T: int, h0: Tensor, H: int, batch_sizes, reset, reverse: bool, dtype) -> tuple:
    threads = torch.get_num_threads()
    return (T, h0.shape[0], H, h0.shape[1], _address(batch_sizes), _address(reset), reverse, _ROUNDING[dtype], threads)


def _steps(source: Tensor, batch_sizes: Tensor | None) -> int:
    return source.shape[0] if batch_sizes is None else batch_sizes.shape[0]


def _check_ids(ids: Tensor, vocabulary: int) -> None:
    if ids.numel() == 0:
        return
    low, high = torch.aminmax(ids)
    if low < 0 or high >= vocabulary:
        bad = int(low if low < 0 else high)
        raise IndexError(
            f"ids hold {bad}, expected 0 to {vocabulary - 1} (the table has {vocabulary} rows); check the vocabulary"
        )


def _input_side(x: Tensor, w_x: Tensor) -> Tensor:
    """x @ W_ih^T; the kernel adds the bias (torch's addmm would first write it to all rows: 10 % of a forward)."""
    return native_product(x.reshape(-1, x.shape[-1]), w_x.t()).view(*x.shape[:-1], w_x.shape[0])


def forward(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save):
    """Run one layer in one direction; arguments and returns as in `fastlstm.reference.forward`."""
    dtype = w_hh.dtype
    real = torch.float64 if dtype == torch.float64 else torch.float32
    H = w_hh.shape[0] // 4
    w_x, bias, w_hh, w_hr, h0, c0 = (_real(v, real) for v in (w_x, bias, w_hh, w_hr, h0, c0))
    source = ids if x is None else x
    if ids is not None:
        ids = ids.contiguous()
        _check_ids(ids, w_x.shape[0])
        xg = w_x
    else:
        xg = _input_side(_real(x, real), w_x)
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    reset = None if reset is None else reset.contiguous()
    rows = tuple(source.shape[: 2 if batch_sizes is None else 1])
    h = torch.empty((*rows, h0.shape[1]), dtype=real)
    c = torch.empty((*rows, H), dtype=real) if save else torch.empty(0, dtype=real)
    gates = torch.empty(0, dtype=real)
    if save == 1:
        gates = xg if ids is None else torch.empty((*rows, 4 * H), dtype=real)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    pointers = [
        _address(v)
        for v in (h, c if save else None, gates if save == 1 else None, h_n, c_n, xg, ids, bias, w_hh, w_hr, h0, c0)
    ]
    shape = _shape(_steps(source, batch_sizes), h0, H, batch_sizes, reset, reverse, dtype)
    native.load().forward(shape, pointers, real == torch.float64)
    return h.to(dtype), c, gates.to(dtype), h_n.to(dtype), c_n


def backward(
    dh, dc, dh_n, dc_n, x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save, h, c, gates
):
    """Run the backward recurrence; arguments and returns as in `fastlstm.reference.backward`."""
    dtype = w_hh.dtype
    real = torch.float64 if dtype == torch.float64 else torch.float32
    H = w_hh.shape[0] // 4
    if gates.numel() == 0 and c.numel() > 0:
        from fastlstm.backends.common import recompute_gates

        gates = recompute_gates(x, ids, w_x, bias, w_hh, h0, batch_sizes, offsets, reset, reverse, h)
    inputs = [_real(v, real) for v in (dh, dc, dh_n, dc_n, gates, c, c0, w_hh, w_hr)]
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    reset = None if reset is None else reset.contiguous()
    rows = tuple(h.shape[:-1])
    dxg = torch.empty((*rows, 4 * H), dtype=real)
    d_hr = torch.empty(tuple(h.shape) if w_hr is not None else (0,), dtype=real)
    dh0, dc0 = torch.empty(h0.shape, dtype=real), torch.empty(c0.shape, dtype=real)
    outputs = [dxg, d_hr if w_hr is not None else None, dh0, dc0]
    shape = _shape(_steps(h, batch_sizes), h0, H, batch_sizes, reset, reverse, dtype)
    native.load().backward(shape, [_address(v) for v in (*outputs, *inputs)], real == torch.float64)
    return dxg.to(dtype), d_hr.to(dtype), dh0.to(dtype), dc0
