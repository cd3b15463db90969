"""The CPU backend: recurrence, input product and all gradients by the native kernels (csrc/cpu).

Half types run through float32: inputs are widened, h is rounded to the type at every step by the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import native
from fastlstm.backends.base import Backend, register
from fastlstm.ops.arguments import Grads, OpInputs, Saved, Spec
from fastlstm.ops.recompute import recompute_gates

_ROUNDING = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}
_HALF = (torch.bfloat16, torch.float16)


@register("cpu")
class Cpu(Backend):
    """The native kernels of csrc/cpu."""

    def unsupported_call(self, spec: Spec) -> str | None:
        if spec.dtype in _ROUNDING:
            return None
        return f"dtype is {spec.dtype}; the cpu backend takes float32, float64, bfloat16 and float16"

    def unavailable(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"tensors are on {device}; the cpu backend takes CPU tensors"
        return native.unavailable()

    def describe(self, spec: Spec) -> str:
        return describe(spec.dtype)

    def forward(self, inputs: OpInputs) -> tuple[Tensor, ...]:
        return _forward(inputs)

    def backward(self, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, ...]:
        dxg = torch.empty((*inputs.lead, inputs.w_hh.shape[0]), dtype=_real_type(inputs.w_hh))
        d_hr, dh0, dc0 = _backward(inputs, saved, grads, dxg, (None,) * 10, (0, 0))
        dtype = inputs.w_hh.dtype
        return dxg.to(dtype), d_hr.to(dtype), dh0.to(dtype), dc0

    def gradients(
        self, wanted: tuple[bool, ...], inputs: OpInputs, saved: Saved, grads: Grads
    ) -> tuple[Tensor | None, ...]:
        return _gradients(wanted, inputs, saved, grads)


def describe(dtype: torch.dtype) -> str:
    """One line on what runs for a type."""
    kind = "rounded through float32" if dtype in _HALF else str(dtype).removeprefix("torch.")
    return f"cpu: fused {native.load().isa()} recurrence, {kind}, up to {torch.get_num_threads()} threads"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _real(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor  # asking costs a fifth of what converting to the same costs, twenty times a training step
    return tensor.to(dtype).contiguous()


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _shape(T: int, h0: Tensor, H: int, batch_sizes, reset, reverse: bool, dtype) -> tuple:
    threads = torch.get_num_threads()
    return (T, h0.shape[0], H, h0.shape[1], _address(batch_sizes), _address(reset), reverse, _ROUNDING[dtype], threads)


def _forward(inputs: OpInputs) -> tuple[Tensor, ...]:
    x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, _, reset, reverse, save = inputs
    dtype = w_hh.dtype
    real = torch.float64 if dtype == torch.float64 else torch.float32
    H = w_hh.shape[0] // 4
    w_x, bias, w_hh, w_hr, h0, c0 = (_real(v, real) for v in (w_x, bias, w_hh, w_hr, h0, c0))
    x, rows = _real(x, real), tuple(inputs.lead)
    h = torch.empty((*rows, h0.shape[1]), dtype=real)
    c = torch.empty((*rows, H), dtype=real) if save else torch.empty(0, dtype=real)
    gates = torch.empty(0, dtype=real)
    if save == 1:
        gates = torch.empty((*rows, 4 * H), dtype=real)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    kept = (h, c if save else None, gates if save == 1 else None, h_n, c_n)
    table, w_x = (None, w_x) if ids is None else (w_x, None)
    pointers = [_address(v) for v in (*kept, table, ids, bias, w_hh, w_hr, h0, c0, x, w_x)]
    shape = _shape(inputs.T, h0, H, batch_sizes, reset, reverse, dtype)
    native.load().forward(shape, pointers, 0 if x is None else x.shape[-1], real == torch.float64)
    return _stored(h, dtype), c, _stored(gates, dtype), _stored(h_n, dtype), c_n


def _gradients(wanted: tuple[bool, ...], inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor | None, ...]:
    """Backward and all that follows from it, without writing down dxg; see `Backend.gradients`."""
    x, ids, w_x, _, w_hh, w_hr, h0, *_ = inputs
    h = saved.h
    dtype, real = w_hh.dtype, _real_type(w_hh)
    want_x, _, want_w, want_bias, want_hh, want_hr = wanted
    dx = torch.empty(x.shape, dtype=real) if want_x else None
    weights = ((want_w, w_x), (want_hh, w_hh), (want_hr, w_hr))
    made = [torch.empty(v.shape, dtype=real) if want else None for want, v in weights]
    dbias = torch.empty(w_hh.shape[0], dtype=real) if want_bias else None
    x, w_x, h, h0 = (_real(v, real) for v in (x, w_x, h, h0))
    outs = (dx, made[0], dbias, *made[1:])
    sizes = (w_x.shape[1] if ids is None else 0, 0 if ids is None else w_x.shape[0])
    _, dh0, dc0 = _backward(inputs, saved, grads, None, (*outs, x, ids, w_x, h, h0), sizes)
    dx, dw_x, dbias, dw_hh, dw_hr = (None if v is None else _stored(v, dtype) for v in outs)
    return dx, None, dw_x, dbias, dw_hh, dw_hr, _stored(dh0, dtype), dc0


def _real_type(w: Tensor) -> torch.dtype:
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def _backward(
    inputs: OpInputs, saved: Saved, grads: Grads, dxg: Tensor | None, products: tuple, sizes: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The native call: d_hr, dh0, dc0 in the real type; dxg (or None) and the outputs in `products` are written to.

    d_hr is there with projection and dxg.
    """
    w_hh, w_hr, h0, c0, batch_sizes, _, reset, reverse, _ = inputs[4:]
    h, c, gates = saved
    real = _real_type(w_hh)
    if gates.numel() == 0 and c.numel() > 0:
        gates = recompute_gates(inputs, h)
    read = [_real(v, real) for v in (*grads, gates, c, c0, w_hh, w_hr)]
    d_hr = None if w_hr is None or dxg is None else torch.empty(h.shape, dtype=real)
    dh0, dc0 = torch.empty(h0.shape, dtype=real), torch.empty(c0.shape, dtype=real)
    pointers = [_address(v) for v in (dxg, d_hr, dh0, dc0, *read)]
    shape = _shape(inputs.T, h0, w_hh.shape[0] // 4, batch_sizes, reset, reverse, w_hh.dtype)
    native.load().backward(shape, pointers, [_address(v) for v in products], *sizes, real == torch.float64)
    return torch.empty(0, dtype=real) if d_hr is None else d_hr, dh0, dc0


dynamo_skip(__name__)
