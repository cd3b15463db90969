"""The CPU backend: recurrence, input product and all gradients by the native kernels (csrc/cpu).

Half types run through float32: inputs are widened, h is rounded to the type at every step by the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import native
from fastlstm.backends.common import recompute_gates

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
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor  # asking costs a fifth of what converting to the same costs, twenty times a training step
    return tensor.to(dtype).contiguous()


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _shape(T: int, h0: Tensor, H: int, batch_sizes, reset, reverse: bool, dtype) -> dict[str, int]:
    """The fields of Shape (csrc/kernels.h) and whether the real type is double."""
    B, P = h0.shape
    return {
        "double": dtype == torch.float64,
        **{"T": T, "B": B, "H": H, "P": P},
        **{"batch_sizes": _address(batch_sizes), "reset": _address(reset)},
        **{"reverse": reverse, "rounding": _ROUNDING[dtype], "threads": torch.get_num_threads()},
    }


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
    else:
        x = _real(x, real)
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    reset = None if reset is None else reset.contiguous()
    rows = tuple(source.shape[: 2 if batch_sizes is None else 1])
    h = torch.empty((*rows, h0.shape[1]), dtype=real)
    c = torch.empty((*rows, H), dtype=real) if save else torch.empty(0, dtype=real)
    gates = torch.empty(0, dtype=real)
    if save == 1:
        gates = torch.empty((*rows, 4 * H), dtype=real)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    native.load().lstm_forward(
        **_shape(_steps(source, batch_sizes), h0, H, batch_sizes, reset, reverse, dtype),
        h=_address(h),
        c=_address(c if save else None),
        gates=_address(gates if save == 1 else None),
        h_n=_address(h_n),
        c_n=_address(c_n),
        xg=_address(None if ids is None else w_x),
        ids=_address(ids),
        bias=_address(bias),
        w_hh=_address(w_hh),
        w_hr=_address(w_hr),
        h0=_address(h0),
        c0=_address(c0),
        x=_address(x),
        w_x=_address(w_x if ids is None else None),
        I=0 if x is None else x.shape[-1],
    )
    return _stored(h, dtype), c, _stored(gates, dtype), _stored(h_n, dtype), c_n


def backward(
    dh, dc, dh_n, dc_n, x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save, h, c, gates
):
    """Run the backward recurrence; arguments and returns as in `fastlstm.reference.backward`."""
    inputs = (x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save)
    dxg = torch.empty((*h.shape[:-1], w_hh.shape[0]), dtype=_real_type(w_hh))
    d_hr, dh0, dc0 = _backward((dh, dc, dh_n, dc_n), inputs, (h, c, gates), dxg, {})
    return dxg.to(w_hh.dtype), d_hr.to(w_hh.dtype), dh0.to(w_hh.dtype), dc0


def gradients(wanted: tuple[bool, ...], grads: tuple, inputs: tuple, outputs: tuple) -> tuple[Tensor | None, ...]:
    """Backward and all that follows from it, without writing down dxg: dx, None, dw_x, dbias, dw_hh, dw_hr, dh0, dc0.

    wanted: whether each of the first six is; grads, inputs, outputs: dh, dc, dh_n, dc_n; what forward was given; h, c and
    gates. Returns None for what is not wanted.
    """
    x, ids, w_x, _, w_hh, w_hr, h0, *_ = inputs
    h = outputs[0]
    dtype, real = w_hh.dtype, _real_type(w_hh)
    want_x, _, want_w, want_bias, want_hh, want_hr = wanted
    dx = torch.empty(x.shape, dtype=real) if want_x else None
    weights = ((want_w, w_x), (want_hh, w_hh), (want_hr, w_hr))
    made = [torch.empty(v.shape, dtype=real) if want else None for want, v in weights]
    dbias = torch.empty(w_hh.shape[0], dtype=real) if want_bias else None
    x, w_x, h, h0 = (_real(v, real) for v in (x, w_x, h, h0))
    ids = None if ids is None else ids.contiguous()
    outs = (dx, made[0], dbias, *made[1:])
    products = {
        **dict(zip(("dx", "dw_x", "dbias", "dw_hh", "dw_hr"), map(_address, outs), strict=True)),
        **{"x": _address(x), "ids": _address(ids), "w_x": _address(w_x), "h": _address(h), "h0": _address(h0)},
        **{"I": w_x.shape[1] if ids is None else 0, "V": 0 if ids is None else w_x.shape[0]},
    }
    _, dh0, dc0 = _backward(grads, inputs, outputs, None, products)
    dx, dw_x, dbias, dw_hh, dw_hr = (None if v is None else _stored(v, dtype) for v in outs)
    return dx, None, dw_x, dbias, dw_hh, dw_hr, _stored(dh0, dtype), dc0


def _real_type(w: Tensor) -> torch.dtype:
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def _backward(
    grads: tuple, inputs: tuple, outputs: tuple, dxg: Tensor | None, products: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The native call: d_hr, dh0, dc0 in the real type; dxg (or None) and the outputs in `products` are written to.

    products: the fields of Products (csrc/kernels.h). d_hr is there with projection and dxg.
    """
    x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, _ = inputs
    h, c, gates = outputs
    dtype, real = w_hh.dtype, _real_type(w_hh)
    if gates.numel() == 0 and c.numel() > 0:
        gates = recompute_gates(x, ids, w_x, bias, w_hh, h0, batch_sizes, offsets, reset, reverse, h)
    dh, dc, dh_n, dc_n, gates, c, c0, w_hh, w_hr = (_real(v, real) for v in (*grads, gates, c, c0, w_hh, w_hr))
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    reset = None if reset is None else reset.contiguous()
    d_hr = None if w_hr is None or dxg is None else torch.empty(h.shape, dtype=real)
    dh0, dc0 = torch.empty(h0.shape, dtype=real), torch.empty(c0.shape, dtype=real)
    native.load().lstm_backward(
        **_shape(_steps(h, batch_sizes), h0, w_hh.shape[0] // 4, batch_sizes, reset, reverse, dtype),
        dxg=_address(dxg),
        d_hr=_address(d_hr),
        dh0=_address(dh0),
        dc0=_address(dc0),
        dh=_address(dh),
        dc=_address(dc),
        dh_n=_address(dh_n),
        dc_n=_address(dc_n),
        gates=_address(gates),
        c=_address(c),
        c0=_address(c0),
        w_hh=_address(w_hh),
        w_hr=_address(w_hr),
        **products,
    )
    return torch.empty(0, dtype=real) if d_hr is None else d_hr, dh0, dc0
