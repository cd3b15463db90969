"""The op for torch: schemas, what runs, and shapes for tracing. One call is one layer in one direction, all steps.

    lstm_forward    the recurrence               → h, c, gates, h_n, c_n
    lstm_backward   its gradients                → d_gates (at the pre-activations), dh_proj (at the projected h), dh0, dc0
    sum_by_id       rows summed by an id, in a fixed order: the gradient of a token table

Arguments and shapes: `fastlstm.ops.reference`. A backend is chosen inside the op, so torch.compile sees one node a layer
and direction whatever T is. Gradients: `fastlstm.ops.autograd`; torch.vmap: `fastlstm.ops.vmap`. The library is defined by
hand because `torch.library.custom_op` costs 57 µs a call where this costs 13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import dispatch
from fastlstm._torch_compat import any_requires_grad, dynamo_skip, is_plain, is_plain_eager
from fastlstm.backends import native
from fastlstm.ops import autograd, flops, validation, vmap
from fastlstm.ops.arguments import SAVE_ALL, Grads, OpInputs, Saved
from fastlstm.ops.autocast import own_types

_INPUTS = (
    "Tensor? x, Tensor? ids, Tensor w_x, Tensor? bias, Tensor w_hh, Tensor? w_hr, Tensor h0, Tensor c0, "
    "Tensor? batch_sizes, Tensor? offsets, Tensor? reset, bool reverse, int save"
)
_GRADS = "Tensor? dh, Tensor? dc, Tensor? dh_n, Tensor? dc_n"

_library = torch.library.Library("fastlstm", "DEF")
_library.define(f"lstm_forward({_INPUTS}) -> (Tensor h, Tensor c, Tensor gates, Tensor h_n, Tensor c_n)")
_library.define(
    f"lstm_backward({_GRADS}, {_INPUTS}, Tensor h, Tensor c, Tensor gates) "
    "-> (Tensor d_gates, Tensor dh_proj, Tensor dh0, Tensor dc0)"
)
_library.define("sum_by_id(Tensor rows, Tensor ids, int V) -> Tensor")


def _forward(*args: object) -> tuple[Tensor, ...]:
    inputs = OpInputs(*args)
    with own_types(inputs.w_hh):
        return dispatch.forward(validation.checked_inputs(inputs))


def _backward(*args: object) -> tuple[Tensor, ...]:
    grads, inputs, saved = Grads(*args[:4]), OpInputs(*args[4:-3]), Saved(*args[-3:])
    with own_types(inputs.w_hh):
        inputs = validation.checked_inputs(inputs)
        return dispatch.backward(inputs, *validation.checked_gradients(inputs, saved, grads))


def run_forward(inputs: OpInputs) -> tuple[Tensor, ...]:
    """`lstm_forward`; past torch's dispatcher where nobody can observe it, since that costs more than all checks."""
    if torch.compiler.is_compiling():
        return lstm_forward(*inputs)
    if not (is_plain_eager() and all(map(_is_plain_or_none, inputs[:-2]))):
        flops.register_with_active_counters()  # here too: inference mode skips what autograd.py registers
        return lstm_forward(*inputs)
    if torch.is_grad_enabled() and any_requires_grad(*inputs):
        return autograd.Forward.apply(_forward, *inputs)
    return _forward(*inputs)


def _is_plain_or_none(v: Tensor | None) -> bool:
    return v is None or is_plain(v)


def _sum_by_id(rows: Tensor, ids: Tensor, V: int) -> Tensor:
    """(V, W): the rows (N, W) summed by their id (N,), the same bits every time."""
    if rows.dim() != 2 or ids.shape != rows.shape[:1] or ids.dtype != torch.int64:
        raise RuntimeError(
            f"sum_by_id: rows have shape {list(rows.shape)} and ids {ids.dtype} {list(ids.shape)}, "
            "expected (N, W) and int64 (N,)"
        )
    validation.ids_in_range(ids, V)
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
    if native.unavailable() is not None:
        return torch.ops.aten.embedding_dense_backward(rows, ids, V, -1, False)
    out = rows.new_zeros(V, rows.shape[1])
    native.load().sum_by_id(
        double=rows.dtype == torch.float64,
        out=out,
        rows=rows,
        ids=ids,
        N=rows.shape[0],
        V=V,
        width=rows.shape[1],
        threads=torch.get_num_threads(),
    )
    return out


def _fake_forward(*args: object) -> tuple[Tensor, ...]:
    inputs = OpInputs(*args)
    validation.on_one_device("lstm_forward", inputs.batch_sizes, inputs.w_hh, *inputs[:8], inputs.offsets, inputs.reset)
    lead, w_hh, h0, c0 = inputs.lead, inputs.w_hh, inputs.h0, inputs.c0
    h = w_hh.new_empty((*lead, w_hh.shape[1]))
    c = c0.new_empty((*lead, c0.shape[1]) if inputs.save else (0,))
    gates = w_hh.new_empty((*lead, w_hh.shape[0]) if inputs.save == SAVE_ALL else (0,))
    return h, c, gates, h0.new_empty(h0.shape), c0.new_empty(c0.shape)


def _fake_backward(*args: object) -> tuple[Tensor, ...]:
    inputs, h = OpInputs(*args[4:-3]), args[-3]
    given = (*args[:4], *inputs[:8], inputs.offsets, inputs.reset, *args[-3:])
    validation.on_one_device("lstm_backward", inputs.batch_sizes, inputs.w_hh, *given)
    dh_proj = h.new_empty(h.shape if inputs.w_hr is not None else (0,))
    d_gates = h.new_empty((*h.shape[:-1], inputs.w_hh.shape[0]))
    return d_gates, dh_proj, inputs.h0.new_empty(inputs.h0.shape), inputs.c0.new_empty(inputs.c0.shape)


def _fake_sum_by_id(rows: Tensor, ids: Tensor, V: int) -> Tensor:
    validation.on_one_device("sum_by_id", None, rows, ids)
    return rows.new_empty((V, rows.shape[1]))


for _name, _run, _fake in (
    ("lstm_forward", _forward, _fake_forward),
    ("lstm_backward", _backward, _fake_backward),
    ("sum_by_id", _sum_by_id, _fake_sum_by_id),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlstm::{_name}", _fake, lib=_library)
autograd.register(_library)
vmap.register(_library)

lstm_forward = torch.ops.fastlstm.lstm_forward.default
lstm_backward = torch.ops.fastlstm.lstm_backward.default
sum_by_id = torch.ops.fastlstm.sum_by_id.default

dynamo_skip(__name__)
