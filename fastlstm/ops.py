"""The op for torch: schemas, what runs, and shapes for tracing. One call is one layer in one direction, all steps.

    lstm_forward    the recurrence               → h, c, gates, h_n, c_n
    lstm_backward   its gradients                → dxg (at the pre-activations), d_hr (at the projected h), dh0, dc0
    sum_by_id       rows summed by an id, in a fixed order: the gradient of a token table

Arguments and shapes: `fastlstm.reference`. A backend is chosen inside the op, so torch.compile sees one node a layer
and direction whatever T is. Gradients: `fastlstm.autograd`; torch.vmap: `fastlstm.batching`. The library is defined by
hand because `torch.library.custom_op` costs 57 µs a call where this costs 13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import autograd, batching, checks, dispatch, native
from fastlstm.backends.device import own_types
from fastlstm.products import is_plain_there, unwatched

_INPUTS = (
    "Tensor? x, Tensor? ids, Tensor w_x, Tensor? bias, Tensor w_hh, Tensor? w_hr, Tensor h0, Tensor c0, "
    "Tensor? batch_sizes, Tensor? offsets, Tensor? reset, bool reverse, int save"
)
_GRADS = "Tensor? dh, Tensor? dc, Tensor? dh_n, Tensor? dc_n"

_library = torch.library.Library("fastlstm", "DEF")
_library.define(f"lstm_forward({_INPUTS}) -> (Tensor h, Tensor c, Tensor gates, Tensor h_n, Tensor c_n)")
_library.define(
    f"lstm_backward({_GRADS}, {_INPUTS}, Tensor h, Tensor c, Tensor gates) "
    "-> (Tensor dxg, Tensor d_hr, Tensor dh0, Tensor dc0)"
)
_library.define("sum_by_id(Tensor rows, Tensor ids, int V) -> Tensor")


def _forward(*args: object) -> tuple[Tensor, ...]:
    with own_types(args[4]):
        return dispatch.forward(*checks.inputs(*args))


def _backward(dh, dc, dh_n, dc_n, *rest: object) -> tuple[Tensor, ...]:
    with own_types(rest[4]):
        inputs = checks.inputs(*rest[:-3])
        dh, dc, dh_n, dc_n, h, c, gates = checks.gradients(dh, dc, dh_n, dc_n, inputs, *rest[-3:])
        return dispatch.backward(dh, dc, dh_n, dc_n, *inputs, h, c, gates)


def run_forward(*args: object) -> tuple[Tensor, ...]:
    """`lstm_forward`, around torch's dispatcher where nobody looks at operations and all tensors are plain.

    Two ways through the dispatcher and back cost more than all checks.
    """
    if torch.compiler.is_compiling() or not (unwatched() and all(map(_is_plain_or_none, args[:-2]))):
        return lstm_forward(*args)
    if torch.is_grad_enabled() and autograd.any_grad(*args):
        return autograd.Forward.apply(_forward, *args)
    return _forward(*args)


def _is_plain_or_none(v: Tensor | None) -> bool:
    return v is None or is_plain_there(v)


def _sum_by_id(rows: Tensor, ids: Tensor, V: int) -> Tensor:
    """(V, W): the rows (N, W) summed by their id (N,), the same bits every time."""
    if rows.dim() != 2 or ids.shape != rows.shape[:1] or ids.dtype != torch.int64:
        raise RuntimeError(
            f"sum_by_id: rows have shape {list(rows.shape)} and ids {ids.dtype} {list(ids.shape)}, "
            "expected (N, W) and int64 (N,)"
        )
    checks.ids_in_range(ids, V)
    if rows.device.type == "cpu":
        wide = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32).contiguous()
        return _sum_by_id_cpu(wide, ids.contiguous(), V).to(rows.dtype)
    ids = ids.clamp(
        0, max(V - 1, 0)
    )  # the row of one outside is NaN already (reference.rows_of); no assertion is to end it
    if rows.shape[0] * V <= _ONE_HOT:
        return torch.nn.functional.one_hot(ids, V).to(rows.dtype).t() @ rows
    return torch.ops.aten.embedding_dense_backward(rows, ids, V, -1, False)  # sorts; no atomics


_ONE_HOT = 1 << 26  # scalars of a one-hot matrix; its product is the fastest sum on a GPU while the matrix is small


def _sum_by_id_cpu(rows: Tensor, ids: Tensor, V: int) -> Tensor:
    if native.why_not() is not None:
        return torch.ops.aten.embedding_dense_backward(rows, ids, V, -1, False)
    out = torch.zeros(V, rows.shape[1], dtype=rows.dtype)
    native.load().sum_by_id(
        double=rows.dtype == torch.float64,
        out=out.data_ptr(),
        rows=rows.data_ptr(),
        ids=ids.data_ptr(),
        N=rows.shape[0],
        V=V,
        width=rows.shape[1],
        threads=torch.get_num_threads(),
    )
    return out


def _fake_forward(x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save):
    lead = ids.shape if x is None else x.shape[:-1]
    h = w_hh.new_empty((*lead, w_hh.shape[1]))
    c = c0.new_empty((*lead, c0.shape[1]) if save else (0,))
    gates = w_hh.new_empty((*lead, w_hh.shape[0]) if save == 1 else (0,))
    return h, c, gates, h0.new_empty(h0.shape), c0.new_empty(c0.shape)


def _fake_backward(dh, dc, dh_n, dc_n, x, ids, w_x, bias, w_hh, w_hr, h0, c0, *rest):
    h = rest[-3]
    d_hr = h.new_empty(h.shape if w_hr is not None else (0,))
    return h.new_empty((*h.shape[:-1], w_hh.shape[0])), d_hr, h0.new_empty(h0.shape), c0.new_empty(c0.shape)


def _fake_sum_by_id(rows, ids, V):
    return rows.new_empty((V, rows.shape[1]))


for _name, _run, _fake in (
    ("lstm_forward", _forward, _fake_forward),
    ("lstm_backward", _backward, _fake_backward),
    ("sum_by_id", _sum_by_id, _fake_sum_by_id),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=_library)
autograd.register(_library)
batching.register(_library)

lstm_forward = torch.ops.fastlstm.lstm_forward.default
lstm_backward = torch.ops.fastlstm.lstm_backward.default
sum_by_id = torch.ops.fastlstm.sum_by_id.default
