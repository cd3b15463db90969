"""The op for torch: schemas, shapes for tracing, gradients. One call is one layer in one direction, all steps.

`lstm_forward` and `lstm_backward` dispatch to a backend inside the op, so that torch.compile sees one node whatever T is.
The autograd Function is registered as the op's own Autograd implementation. Weight gradients are large products and are
made here from dxg, the gradient at the pre-activations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastlstm import dispatch, native
from fastlstm.backends.common import h_previous

_INPUTS = (
    "Tensor? x, Tensor? ids, Tensor w_x, Tensor? bias, Tensor w_hh, Tensor? w_hr, Tensor h0, Tensor c0, "
    "Tensor? batch_sizes, Tensor? offsets, Tensor? reset, bool reverse, int save"
)
_library = torch.library.Library("fastlstm", "DEF")
_library.define(f"lstm_forward({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
_library.define(
    f"lstm_backward(Tensor? dh, Tensor? dc, Tensor? dh_n, Tensor? dc_n, {_INPUTS}, Tensor h, Tensor c, Tensor gates) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
for _key in ("CPU", "CUDA"):
    _library.impl("lstm_forward", dispatch.forward, _key)
    _library.impl("lstm_backward", dispatch.backward, _key)

lstm_forward = torch.ops.fastlstm.lstm_forward.default
lstm_backward = torch.ops.fastlstm.lstm_backward.default


def _fake_forward(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save):
    rows = ids.shape if x is None else x.shape[:-1]
    four_h, P = w_hh.shape
    h = h0.new_empty((*rows, P))
    c = c0.new_empty((*rows, four_h // 4) if save else (0,))
    gates = h0.new_empty((*rows, four_h) if save == 1 else (0,))
    return h, c, gates, torch.empty_like(h0), torch.empty_like(c0)


def _fake_backward(
    dh, dc, dh_n, dc_n, x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save, h, c, gates
):
    dxg = h.new_empty((*h.shape[:-1], w_hh.shape[0]))
    d_hr = h.new_empty(h.shape if w_hr is not None else (0,))
    return dxg, d_hr, torch.empty_like(h0), torch.empty_like(c0)


torch.library.register_fake("fastlstm::lstm_forward", _fake_forward, lib=_library)
torch.library.register_fake("fastlstm::lstm_backward", _fake_backward, lib=_library)


def sum_by_id(rows: Tensor, ids: Tensor, V: int) -> Tensor:
    """Return (V, W): the rows (N, W) summed by their id, in a fixed order."""
    if rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64) and native.why_not() is None:
        out = torch.zeros(V, rows.shape[1], dtype=rows.dtype)
        rows, ids = rows.contiguous(), ids.contiguous()
        sizes = (rows.shape[0], V, rows.shape[1])
        double, threads = rows.dtype == torch.float64, torch.get_num_threads()
        native.load().sum_by_id(out.data_ptr(), rows.data_ptr(), ids.data_ptr(), sizes, double, threads)
        return out
    one_hot = torch.nn.functional.one_hot(ids, V).to(rows.dtype)
    return one_hot.t() @ rows


def _recurrent_weight_gradient(dxg: Tensor, h: Tensor, h0: Tensor, batch_sizes, reset, reverse: bool) -> Tensor:
    """dW_hh = dxg^T @ h_prev, (4H, P). The dense case multiplies shifted views and adds the first step."""
    W = dxg.shape[-1]
    if batch_sizes is not None or reset is not None or h.shape[0] == 0:
        return dxg.reshape(-1, W).t() @ h_previous(h, h0, batch_sizes, reset, reverse)
    later, earlier, first = (dxg[:-1], h[1:], dxg[-1]) if reverse else (dxg[1:], h[:-1], dxg[0])
    return torch.addmm(first.t() @ h0, later.reshape(-1, W).t(), earlier.reshape(-1, h.shape[-1]))


class LSTMFunction(torch.autograd.Function):
    """The op with its gradients; `backward` runs the backward op and turns dxg into the gradients of the weights."""

    @staticmethod
    def forward(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            h, c, gates, h_n, c_n = lstm_forward(*inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(gates)
        x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, ctx.reverse, ctx.save = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, h, c, gates)
        return h, c, gates, h_n, c_n

    @staticmethod
    @once_differentiable
    def backward(ctx, dh, dc, _dgates, dh_n, dc_n):
        if ctx.save == 0:
            raise RuntimeError("save is 0, which keeps nothing for backward; call the op with save=1 or save=2")
        x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, h, c, gates = ctx.saved_tensors
        inputs = (x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, ctx.reverse, ctx.save)
        dxg, d_hr, dh0, dc0 = lstm_backward(dh, dc, dh_n, dc_n, *inputs, h, c, gates)
        need = ctx.needs_input_grad
        rows = dxg.reshape(-1, dxg.shape[-1])
        dx = dw_x = dbias = dw_hh = dw_hr = None
        if need[0]:
            dx = (rows @ w_x).view(x.shape)
        if need[2]:
            dw_x = rows.t() @ x.reshape(-1, x.shape[-1]) if ids is None else sum_by_id(rows, ids.reshape(-1), len(w_x))
        if need[3]:
            dbias = rows.sum(0)
        if need[4]:
            dw_hh = _recurrent_weight_gradient(dxg, h, h0, batch_sizes, reset, ctx.reverse)
        if need[5]:
            dw_hr = LSTMFunction._projection_gradient(d_hr, c, gates, inputs, h)
        return dx, None, dw_x, dbias, dw_hh, dw_hr, dh0, dc0, None, None, None, None, None

    @staticmethod
    def _projection_gradient(d_hr, c, gates, inputs, h):
        """dW_hr = d_hr^T @ (o tanh c), (P, H)."""
        if gates.numel() == 0 and c.numel() > 0:
            from fastlstm.backends.common import recompute_gates

            x, ids, w_x, bias, w_hh, _, h0, _, batch_sizes, offsets, reset, reverse, _ = inputs
            gates = recompute_gates(x, ids, w_x, bias, w_hh, h0, batch_sizes, offsets, reset, reverse, h)
        H = c.shape[-1]
        before = (gates[..., 3 * H :].to(c.dtype) * c.tanh()).reshape(-1, H)
        return (d_hr.reshape(-1, d_hr.shape[-1]).to(c.dtype).t() @ before).to(d_hr.dtype)


def _autograd(*inputs):
    if torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in inputs):
        return LSTMFunction.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return lstm_forward(*inputs)


_library.impl("lstm_forward", _autograd, "Autograd")
