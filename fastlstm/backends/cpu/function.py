"""All layers and directions of a module in one autograd Function over the native kernels: the fused CPU route.

The op of `fastlstm.ops.lstm` takes one layer and direction at a time, through torch's dispatcher, so that every backend and
every transform of torch can take part. Where none of them does (`fastlstm.modules.route` decides), a call is this: one
native call a layer and direction, with no other operation of torch in between. At H = 64 the dispatcher costs a fifth of a
training step. Second derivatives, and every backward pass that is recorded, run the op over the saved inputs instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm._torch_compat import SingleLevelFunction, dynamo_skip, is_recorded
from fastlstm.backends import native
from fastlstm.backends.cpu.backend import in_type, real_type
from fastlstm.memory import check_saved, empty, plain_check
from fastlstm.ops.cell import LayerWeights, Stack
from fastlstm.ops.token_table import native_gradients, native_table


class FusedCall(NamedTuple):
    """What a call is, besides its tensors.

    V: number of ids, 0 where the input holds vectors; dtype: of rows and states, and of the weights, which may be float32
    beside bfloat16; threads: at most so many; through_ops(fused, source, h0, c0, embedding, *weights): output, h_n and c_n by
    operations that torch can differentiate again.
    """

    stack: Stack
    V: int
    batch_sizes: Tensor | None
    T: int
    B: int
    dtype: torch.dtype
    threads: int
    through_ops: Callable[..., tuple[Tensor, Tensor, Tensor]]

    @property
    def real(self) -> torch.dtype:
        """The type of cells, biases and token tables: float32 for bfloat16."""
        return real_type(self.dtype)

    def types(self, weight: Tensor) -> dict[str, object]:
        """The keywords of a native call that say of which types its arrays are; weight: one of them."""
        stored = self.dtype == torch.bfloat16
        return {"double": self.dtype == torch.float64, "bfloat16": stored * (2 if weight.dtype == torch.float32 else 1)}


FIRST_WEIGHT = 4  # inputs of the Function before the weights: source, h0, c0, embedding
_LARGE = 1 << 16  # scalars from which arrays are kept for the next step (csrc/bindings/array_cache.cpp)


def _cached_array(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An array of a training step, not initialised. (torch can't resize it, as it can't what requires a gradient.)"""
    if math.prod(shape) < _LARGE:
        return empty(shape, dtype)
    kind = dtype == torch.float64, dtype == torch.bfloat16
    return torch.utils.dlpack.from_dlpack(native.load().array(shape, *kind))


def forward(
    call: FusedCall, source: Tensor, h0: Tensor, c0: Tensor, embedding: Tensor | None, weights: tuple, keep: bool
) -> tuple:
    """Output, h_n, c_n, and what backward reads: the input of each later layer; h, c and gates of each direction.

    source: (T, B, I) or (N, I), or ids; h0 (LD, B, P), c0 (LD, B, H); embedding: of the ids, (V, I), or None; weights:
    torch's flat list.
    """
    h_n, c_n, c0 = empty(h0.shape, call.dtype), empty(c0.shape, call.real), c0.to(call.real)
    x, between, kept = source, [], []
    for layer in range(call.stack.layers):
        if layer:
            between.append(x)
        outputs = []
        for d in range(call.stack.directions):
            k = layer * call.stack.directions + d
            own = call.stack.layer(weights, k)
            outputs.append(_direction(call, k, x, (h_n, c_n, h0, c0), embedding, own, keep))
        kept += outputs
        x = outputs[0][0] if call.stack.directions == 1 else torch.cat([h for h, _, _ in outputs], -1)
    return x, h_n, c_n.to(call.dtype), between, kept


def _direction(
    call: FusedCall, k: int, x: Tensor, states: tuple, embedding: Tensor | None, own: LayerWeights, keep: bool
) -> tuple:
    """Layer and direction number k: h, c and gates; these two are None unless kept. states: h_n, c_n, h0, c0 of all."""
    H, dtype, real = call.stack.hidden_size, call.dtype, call.real
    w_ih, w_hh, bias, w_hr = own.w_ih, own.w_hh, own.bias_in(real), own.w_hr
    ids = call.V > 0 and k < call.stack.directions
    if ids:
        w_ih, bias = native_table(*in_type(real, embedding, w_ih), bias), None
    rows = x.shape if ids else x.shape[:-1]
    is_output = call.stack.directions == 1 and k == call.stack.layers - 1  # the user's, who may resize it
    h = (empty if is_output or not keep else _cached_array)((*rows, call.stack.P), dtype)
    c = _cached_array((*rows, H), real) if keep else None
    gates = _cached_array((*rows, 4 * H), dtype) if keep else None
    h_n, c_n, h0, c0 = states
    native.load().lstm_forward(
        **call.types(w_hh),
        T=call.T,
        B=call.B,
        H=H,
        P=call.stack.P,
        batch_sizes=call.batch_sizes,
        reverse=k % call.stack.directions == 1,
        threads=call.threads,
        part=k,
        h=h,
        c=c,
        gates=gates,
        h_n=h_n,
        c_n=c_n,
        x_gates=w_ih if ids else None,
        ids=x if ids else None,
        bias=bias,
        w_hh=w_hh,
        w_hr=w_hr,
        h0=h0,
        c0=c0,
        x=None if ids else x,
        w_x=None if ids else w_ih,
        I=0 if ids else x.shape[-1],
    )
    return h, c, gates


class FusedLSTM(SingleLevelFunction):
    """`forward` with its gradients."""

    @staticmethod
    def forward(
        ctx, call: FusedCall, source: Tensor, h0: Tensor, c0: Tensor, embedding: Tensor | None, *weights: Tensor
    ) -> tuple:
        out, h_n, c_n, between, kept = forward(call, source, h0, c0, embedding, weights, keep=True)
        ctx.call, ctx.counts = call, (len(weights), len(between))
        ctx.set_materialize_grads(False)
        kept = [v for three in kept for v in three]
        ctx.save_for_backward(call.batch_sizes, source, h0, c0, embedding, *weights, *between, *kept)
        if out is kept[-3] and call.stack.output_may_change(out.dtype, call.batch_sizes is not None):
            out = out.clone()
        return out, h_n, c_n

    @staticmethod
    def backward(ctx, d_out: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None) -> tuple:
        saved, grads, is_plain = ctx.saved_tensors, (d_out, dh_n, dc_n), plain_check()
        needs_grad, (n_weights, n_between) = ctx.needs_input_grad[1:], ctx.counts
        if is_recorded() or not all(v is None or is_plain(v) for v in (*grads, *saved)):
            check_saved(saved)
            call = ctx.call._replace(batch_sizes=saved[0])
            return None, *_through_ops(call, needs_grad, grads, saved[1 : 1 + FIRST_WEIGHT + n_weights])
        contiguous = (v if v is None else v.contiguous() for v in saved)  # hooks may give any strides
        batch_sizes, source, h0, c0, embedding, *rest = contiguous
        call = ctx.call._replace(batch_sizes=batch_sizes)
        of_grads = (call.dtype, call.dtype, call.real)
        grads = tuple(None if g is None else g.to(t).contiguous() for g, t in zip(grads, of_grads, strict=True))
        weights, between, kept = (
            rest[:n_weights],
            rest[n_weights : n_weights + n_between],
            rest[n_weights + n_between :],
        )
        return None, *_Backward(call, needs_grad, grads, [source, *between], (h0, c0), embedding, weights, kept).run()


class _Backward:
    """One backward pass through all layers, from the last to the first."""

    def __init__(
        self,
        call: FusedCall,
        needs_grad: tuple[bool, ...],
        grads: tuple,
        inputs: list[Tensor],
        states: tuple,
        embedding: Tensor | None,
        weights: list,
        kept: list,
    ) -> None:
        self.call, self.needs_grad = call, needs_grad
        self.d_out, self.dh_n, self.dc_n = grads
        self.inputs, self.embedding, self.weights, self.kept = inputs, embedding, weights, kept
        self.h0, self.c0 = states[0], states[1].to(call.real)
        LD, B = call.stack.layers * call.stack.directions, call.B
        self.dh0 = empty((LD, B, call.stack.P), call.dtype)
        self.dc0 = empty((LD, B, call.stack.hidden_size), call.real)
        self.d_embedding: Tensor | None = None
        self.d_weights: list[Tensor | None] = [None] * len(weights)

    def run(self) -> list[Tensor | None]:
        """Gradients of source, h0, c0, embedding and the weights."""
        call, d_out = self.call, self.d_out
        for layer in reversed(range(call.stack.layers)):
            per_layer, below = call.stack.per_direction * call.stack.directions, None
            before = FIRST_WEIGHT + per_layer * layer if layer else 1  # states and weights below want it too
            wants_dx = any(self.needs_grad[:before])
            for d in range(call.stack.directions):
                dx = self._one_direction(layer, d, self._share(d_out, d), wants_dx)
                below = dx if below is None or dx is None else below.add_(dx)
            d_out = below
        return [d_out, self.dh0, self.dc0.to(call.dtype), self.d_embedding, *self.d_weights]

    def _share(self, d_out: Tensor | None, d: int) -> Tensor | None:
        """What of the gradient at a layer's output is direction d's."""
        P = self.call.stack.P
        return (
            d_out if d_out is None or self.call.stack.directions == 1 else d_out[..., d * P : (d + 1) * P].contiguous()
        )

    def _one_direction(self, layer: int, d: int, dh: Tensor | None, wants_dx: bool) -> Tensor | None:
        call, k = self.call, layer * self.call.stack.directions + d
        first = k * call.stack.per_direction
        w_ih, w_hh, *rest = self.weights[first : first + call.stack.per_direction]
        needs_grad = self.needs_grad[FIRST_WEIGHT + first : FIRST_WEIGHT + first + call.stack.per_direction]
        x, (h, c, gates) = self.inputs[layer], self.kept[3 * k : 3 * k + 3]
        ids, of_bias = call.V > 0 and layer == 0, call.stack.bias and any(needs_grad[2:4])
        of_table = self.needs_grad[3], needs_grad[0], of_bias
        shapes = call.stack.weight_shapes[first : first + call.stack.per_direction]
        of_w_ih, of_w_hh, of_w_hr = shapes[0], shapes[1], shapes[-1]  # the last: with a projection
        shape, wants_in = ((call.V, of_w_hh[0]), any(of_table)) if ids else (of_w_ih, needs_grad[0])
        d_in = empty(shape, call.real if ids else w_ih.dtype) if wants_in else None
        make = _cached_array if layer or d else empty  # the first layer's is the user's, who may resize it
        dx = make((*x.shape[:-1], of_w_ih[1]), call.dtype) if wants_dx and not ids else None
        dw_hh = empty(of_w_hh, w_hh.dtype) if needs_grad[1] else None
        dbias = empty(of_w_hh[:1], call.real) if of_bias and not ids else None
        dw_hr = empty(of_w_hr, w_hh.dtype) if call.stack.proj_size and needs_grad[-1] else None
        native.load().lstm_backward(
            **call.types(w_hh),
            T=call.T,
            B=call.B,
            H=call.stack.hidden_size,
            P=call.stack.P,
            batch_sizes=self.call.batch_sizes,
            reverse=d == 1,
            threads=call.threads,
            part=k,
            dh0=self.dh0,
            dc0=self.dc0,
            dh=dh,
            dh_n=self.dh_n,
            dc_n=self.dc_n,
            gates=gates,
            c=c,
            c0=self.c0,
            w_hh=w_hh,
            w_hr=rest[-1] if call.stack.proj_size else None,
            dx=dx,
            dw_x=None if ids else d_in,
            d_table=d_in if ids else None,
            dbias=dbias,
            dw_hh=dw_hh,
            dw_hr=dw_hr,
            x=None if ids else x,
            ids=x if ids else None,
            w_x=None if ids else w_ih,
            h=h,
            h0=self.h0,
            I=0 if ids else of_w_ih[1],
            V=call.V if ids else 0,
        )
        if ids:
            embedding, real_w = in_type(call.real, self.embedding, w_ih)
            d_embedding, d_in, dbias = in_type(w_ih.dtype, *native_gradients(d_in, embedding, real_w, of_table))
            self.d_embedding = d_embedding if self.d_embedding is None else self.d_embedding.add_(d_embedding)
        (dbias,) = in_type(w_hh.dtype, dbias)
        made = [d_in, dw_hh, *((dbias, None if dbias is None else dbias.clone()) if call.stack.bias else ())]
        if call.stack.proj_size:
            made.append(dw_hr)
        self.d_weights[first : first + call.stack.per_direction] = made
        return dx


def _through_ops(call: FusedCall, needs_grad: tuple[bool, ...], grads: tuple, inputs: tuple) -> list[Tensor | None]:
    """The gradients by operations that torch can differentiate and batch, for whoever does (create_graph, vmap)."""
    sources = [k for k, want in enumerate(needs_grad) if want]
    with_grad = [k for k, g in enumerate(grads) if g is not None]
    grads_in: list[Tensor | None] = [None] * len(inputs)
    if not with_grad:
        return grads_in
    record, inputs = torch.is_grad_enabled(), list(inputs)
    with torch.enable_grad():
        for k in sources:
            inputs[k] = inputs[k].view_as(inputs[k])  # so that what one input is to another does not count
        outputs = call.through_ops(call, *inputs)
    outs, heads = [outputs[k] for k in with_grad], [grads[k] for k in with_grad]
    made = torch.autograd.grad(outs, [inputs[k] for k in sources], heads, create_graph=record, allow_unused=True)
    for k, grad in zip(sources, made, strict=True):
        grads_in[k] = grad
    return grads_in


dynamo_skip(__name__)
