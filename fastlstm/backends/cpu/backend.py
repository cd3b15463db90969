"""The CPU backend: recurrence, input product and all gradients by the native kernels (csrc/cpu).

Half types run through float32: inputs are widened, h is rounded to the type at every step by the kernel.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import native
from fastlstm.backends.base import Backend, register
from fastlstm.memory import empty
from fastlstm.ops.arguments import SAVE_ALL, Grads, OpInputs, Saved, Spec
from fastlstm.ops.recompute import recompute_gates

_ROUNDING = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Rounding in csrc/kernels.h
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
        dtype, real, H, save = inputs.w_hh.dtype, _real_type(inputs.w_hh), inputs.H, inputs.save
        x, ids, w_x, bias, w_hh, w_hr, h0, c0 = (_as_real(v, real) for v in inputs[:8])
        lead = tuple(inputs.lead)
        h = empty((*lead, h0.shape[1]), real)
        c = empty((*lead, H) if save else (0,), real)
        gates = empty((*lead, 4 * H) if save == SAVE_ALL else (0,), real)
        h_n, c_n = empty(h0.shape, real), empty(c0.shape, real)
        native.load().lstm_forward(
            **_shape(inputs),
            h=h,
            c=c if save else None,
            gates=gates if save == SAVE_ALL else None,
            h_n=h_n,
            c_n=c_n,
            x_gates=None if ids is None else w_x,
            ids=ids,
            bias=bias,
            w_hh=w_hh,
            w_hr=w_hr,
            h0=h0,
            c0=c0,
            x=x,
            w_x=w_x if ids is None else None,
            I=0 if x is None else x.shape[-1],
        )
        return _stored(h, dtype), c, _stored(gates, dtype), _stored(h_n, dtype), c_n

    def backward(self, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, ...]:
        dtype = inputs.w_hh.dtype
        d_gates = empty((*inputs.lead, inputs.w_hh.shape[0]), _real_type(inputs.w_hh))
        dh_proj, dh0, dc0 = _backward(inputs, saved, grads, d_gates, {})
        return d_gates.to(dtype), dh_proj.to(dtype), dh0.to(dtype), dc0

    def gradients(
        self, needs_grad: tuple[bool, ...], inputs: OpInputs, saved: Saved, grads: Grads
    ) -> tuple[Tensor | None, ...]:
        """Without writing down d_gates, the gradient at the pre-activations."""
        dtype, real = inputs.w_hh.dtype, _real_type(inputs.w_hh)
        want_x, _, want_w, want_bias, want_hh, want_hr = needs_grad
        x, ids, w_x, _, w_hh, w_hr, h0, _ = (_as_real(v, real) for v in inputs[:8])
        h = _as_real(saved.h, real)
        sized = ((want_x, x), (want_w, w_x), (want_bias, w_hh[:, 0]), (want_hh, w_hh), (want_hr, w_hr))
        dx, dw_x, dbias, dw_hh, dw_hr = made = [empty(v.shape, real) if want else None for want, v in sized]
        products = {
            **{"dx": dx, "dw_x": dw_x, "dbias": dbias},
            **{"dw_hh": dw_hh, "dw_hr": dw_hr},
            **{"x": x, "ids": ids, "w_x": w_x, "h": h, "h0": h0},
            **{"I": w_x.shape[1] if ids is None else 0, "V": 0 if ids is None else w_x.shape[0]},
        }
        _, dh0, dc0 = _backward(inputs, saved, grads, None, products)
        dx, *weights = (None if v is None else _stored(v, dtype) for v in made)
        return dx, None, *weights, _stored(dh0, dtype), dc0


def describe(dtype: torch.dtype) -> str:
    """One line on what runs for a type."""
    return _line(dtype, native.load().isa(), torch.get_num_threads())


@cache
def _line(dtype: torch.dtype, isa: str, threads: int) -> str:
    kind = "rounded through float32" if dtype in _HALF else str(dtype).removeprefix("torch.")
    return f"cpu: fused {isa} recurrence, {kind}, up to {threads} threads"


def _real_type(w: Tensor) -> torch.dtype:
    """The type in which the kernels compute."""
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def _as_real(tensor: Tensor | None, real: torch.dtype) -> Tensor | None:
    """A floating tensor in the type of the kernels; anything else as it is."""
    if tensor is None or tensor.dtype == real or not tensor.is_floating_point():
        return tensor
    return tensor.to(real)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _shape(inputs: OpInputs) -> dict[str, int]:
    """The fields of Shape (csrc/kernels.h) and whether the real type is double."""
    B, P = inputs.h0.shape
    dtype = inputs.w_hh.dtype
    return {
        "double": dtype == torch.float64,
        **{"T": inputs.T, "B": B, "H": inputs.H, "P": P},
        **{"batch_sizes": inputs.batch_sizes, "reset": inputs.reset},
        **{"reverse": inputs.reverse, "rounding": _ROUNDING[dtype], "threads": torch.get_num_threads()},
    }


def _backward(
    inputs: OpInputs, saved: Saved, grads: Grads, d_gates: Tensor | None, products: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The native call: dh_proj, dh0, dc0 in the real type; d_gates (or None) and the outputs in `products` are written to.

    products: the fields of Products (csrc/kernels.h). dh_proj is there with projection and d_gates.
    """
    h, c, gates = saved
    real, h0 = _real_type(inputs.w_hh), inputs.h0
    if gates.numel() == 0 and c.numel() > 0:
        gates = recompute_gates(inputs, h)
    read = (*grads, gates, c, inputs.c0, inputs.w_hh, inputs.w_hr)
    dh, dc, dh_n, dc_n, gates, c, c0, w_hh, w_hr = (_as_real(v, real) for v in read)
    dh_proj = None if w_hr is None or d_gates is None else empty(h.shape, real)
    dh0, dc0 = empty(h0.shape, real), empty(c0.shape, real)
    native.load().lstm_backward(
        **_shape(inputs),
        d_gates=d_gates,
        dh_proj=dh_proj,
        dh0=dh0,
        dc0=dc0,
        dh=dh,
        dc=dc,
        dh_n=dh_n,
        dc_n=dc_n,
        gates=gates,
        c=c,
        c0=c0,
        w_hh=w_hh,
        w_hr=w_hr,
        **products,
    )
    return empty((0,), real) if dh_proj is None else dh_proj, dh0, dc0


dynamo_skip(__name__)
