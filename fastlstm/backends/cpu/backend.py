"""The CPU backend: recurrence, input product and all gradients by the native kernels (csrc/cpu).

bfloat16 stays bfloat16 in memory where the instruction set multiplies it (`native_type`); the cell and all sums are float32.
Elsewhere, and in float16, half types run through float32: inputs are widened, h is rounded to the type at every step by the
kernel.
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
from fastlstm.ops.reference import HALF_TYPES

_ROUNDING = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Rounding in csrc/kernels.h


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
        dtype, H, save = inputs.w_hh.dtype, inputs.H, inputs.save
        real, stored = real_type(dtype), native_type(dtype)
        ids, (x, w_x, w_hh, w_hr, h0) = inputs.ids, in_type(stored, inputs.x, inputs.w_x, *inputs[4:7])
        bias, c0 = in_type(real, inputs.bias, inputs.c0)
        lead = tuple(inputs.lead)
        h = empty((*lead, h0.shape[1]), stored)
        c = empty((*lead, H) if save else (0,), real)
        gates = empty((*lead, 4 * H) if save == SAVE_ALL else (0,), stored)
        h_n, c_n = empty(h0.shape, stored), empty(c0.shape, real)
        native.load().lstm_forward(
            **_shape(inputs),
            h=h,
            c=c if save else None,
            gates=gates if save == SAVE_ALL else None,
            h_n=h_n,
            c_n=c_n,
            x_gates=None if ids is None else w_x.to(real),
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
        h, gates, h_n = in_type(dtype, h, gates, h_n)
        return h, c, gates, h_n, c_n

    def backward(self, inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Tensor, ...]:
        dtype = inputs.w_hh.dtype
        d_gates = empty((*inputs.lead, inputs.w_hh.shape[0]), native_type(dtype))
        dh_proj, dh0, dc0 = _backward(inputs, saved, grads, d_gates, {})
        return *in_type(dtype, d_gates, dh_proj, dh0), dc0

    def gradients(
        self, needs_grad: tuple[bool, ...], inputs: OpInputs, saved: Saved, grads: Grads
    ) -> tuple[Tensor | None, ...]:
        """Without writing down d_gates, the gradient at the pre-activations."""
        dtype = inputs.w_hh.dtype
        real, stored = real_type(dtype), native_type(dtype)
        want_x, _, want_w, want_bias, want_hh, want_hr = needs_grad
        ids, (x, w_x, w_hh, w_hr, h0, h) = inputs.ids, in_type(stored, inputs.x, inputs.w_x, *inputs[4:7], saved.h)
        dx, dw_hh, dw_hr = made = [
            empty(v.shape, stored) if want else None for want, v in ((want_x, x), (want_hh, w_hh), (want_hr, w_hr))
        ]
        dw_x = empty(w_x.shape, stored if ids is None else real) if want_w else None
        dbias = empty(w_hh.shape[:1], real) if want_bias else None
        products = {
            **{"dx": dx, "dw_x" if ids is None else "d_table": dw_x, "dbias": dbias},
            **{"dw_hh": dw_hh, "dw_hr": dw_hr},
            **{"x": x, "ids": ids, "w_x": w_x if ids is None else None, "h": h, "h0": h0},
            **{"I": w_x.shape[1] if ids is None else 0, "V": 0 if ids is None else w_x.shape[0]},
        }
        _, dh0, dc0 = _backward(inputs, saved, grads, None, products)
        dx, dw_hh, dw_hr, dw_x, dbias, dh0 = in_type(dtype, *made, dw_x, dbias, dh0)
        return dx, None, dw_x, dbias, dw_hh, dw_hr, dh0, dc0


def describe(dtype: torch.dtype) -> str:
    """One line on what runs for a type."""
    return _line(dtype, native.load().isa(), torch.get_num_threads())


@cache
def _line(dtype: torch.dtype, isa: str, threads: int) -> str:
    kind = str(dtype).removeprefix("torch.")
    if dtype in HALF_TYPES:
        kind = f"{kind} products" if native_type(dtype) == dtype else "rounded through float32"
    return f"cpu: fused {isa} recurrence, {kind}, up to {threads} threads"


def real_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which the kernels' cells compute, for tensors of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def native_type(dtype: torch.dtype) -> torch.dtype:
    """The type of rows and weights that go to the kernels: bfloat16 where they multiply it, else `real_type`."""
    if dtype == torch.bfloat16 and native.load().multiplies_bfloat16():
        return torch.bfloat16
    return real_type(dtype)


def is_native(dtype: torch.dtype) -> bool:
    """Whether rows of a type go to the kernels as they are. Without the native module nothing does."""
    return native.unavailable() is None and native_type(dtype) == dtype


def in_type(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors in a type; None stays."""
    return [v if v is None or v.dtype == dtype else v.to(dtype) for v in tensors]


def _shape(inputs: OpInputs) -> dict[str, int]:
    """The fields of Shape (csrc/kernels.h) and the types of a native call."""
    B, P = inputs.h0.shape
    dtype = inputs.w_hh.dtype
    return {
        "double": dtype == torch.float64,
        "bfloat16": int(native_type(dtype) == torch.bfloat16),
        **{"T": inputs.T, "B": B, "H": inputs.H, "P": P},
        **{"batch_sizes": inputs.batch_sizes, "reset": inputs.reset},
        **{"reverse": inputs.reverse, "rounding": _ROUNDING[dtype], "threads": torch.get_num_threads()},
    }


def _backward(
    inputs: OpInputs, saved: Saved, grads: Grads, d_gates: Tensor | None, products: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The native call: dh_proj, dh0, dc0 in their native types; d_gates (or None) and the outputs in `products` are written to.

    products: the fields of Products (csrc/kernels.h). dh_proj is there with projection and d_gates.
    """
    h, c, gates = saved
    real, stored, h0 = real_type(inputs.w_hh.dtype), native_type(inputs.w_hh.dtype), inputs.h0
    if gates.numel() == 0 and c.numel() > 0:
        gates = recompute_gates(inputs, h)
    dh, dh_n, gates, w_hh, w_hr = in_type(stored, grads[0], grads[2], gates, inputs.w_hh, inputs.w_hr)
    dc, dc_n, c, c0 = in_type(real, grads[1], grads[3], c, inputs.c0)
    dh_proj = None if w_hr is None or d_gates is None else empty(h.shape, stored)
    dh0, dc0 = empty(h0.shape, stored), empty(c0.shape, real)
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
    return empty((0,), stored) if dh_proj is None else dh_proj, dh0, dc0


dynamo_skip(__name__)
