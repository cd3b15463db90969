"""All layers and directions of a module in one autograd Function over the native kernels.

The op of `fastlstm.ops` takes a layer and a direction at a time, through torch's dispatcher, so that every backend and
every transform of torch can take part. Where none of them does (`fastlstm.direct` decides), what is left of a call is
this: one native call a layer and direction, and nothing else of torch in between. Second derivatives go the general
way, as every backward pass that somebody records: `fastlstm.layers.run` over the saved inputs.
"""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from fastlstm import native
from fastlstm.products import unrecorded
from fastlstm.tables import native_gradients, native_table, table
from fastlstm.untraced import leave_alone


class Layout(NamedTuple):
    """What a call is, beside its tensors."""

    layers: int
    directions: int
    bias: bool
    projected: bool
    V: int  # ids that there are, 0 where the input holds vectors
    batch_sizes: Tensor | None
    T: int
    B: int
    H: int
    P: int
    dtype: torch.dtype
    threads: int

    def shape(self, reverse: bool) -> dict[str, int]:
        """The fields of Shape (csrc/kernels.h) and whether the real type is double."""
        return {
            "double": self.dtype == torch.float64,
            "T": self.T,
            "B": self.B,
            "H": self.H,
            "P": self.P,
            "batch_sizes": _address(self.batch_sizes),
            "reset": 0,
            "reverse": reverse,
            "rounding": 0,
            "threads": self.threads,
        }

    @property
    def each(self) -> int:
        """Weights of a layer and direction."""
        return 2 + 2 * self.bias + self.projected

    def parts(self, weights: tuple, k: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """W_ih, W_hh, the sum of the biases and W_hr of layer and direction number k; None for what there is not."""
        w_ih, w_hh, *rest = weights[k * self.each : (k + 1) * self.each]
        return w_ih, w_hh, rest[0] + rest[1] if self.bias else None, rest[-1] if self.projected else None

    def through_ops(
        self, source: Tensor, h0: Tensor, c0: Tensor, embedding: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, h_n and c_n the general way, which torch can differentiate as often as it likes."""
        from fastlstm import layers

        sizes = {"num_layers": self.layers, "bias": self.bias, "proj_size": self.P if self.projected else 0}
        off = dict.fromkeys(
            ("training", "dropout", "weight_drop", "input_dropout", "locked_dropout", "recompute"), False
        )
        module = SimpleNamespace(bidirectional=self.directions == 2, **sizes, **off)
        tables = None
        if self.V:
            tables = [table(embedding, *self.parts(weights, d)[::2]) for d in range(self.directions)]
        rows = layers.Rows.of(source, self.batch_sizes)
        return layers.run(module, rows, (h0, c0), list(weights), tables=tables)[:3]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _addresses(k: int, *tensors: Tensor | None) -> list[int]:
    """Where the k-th part of each begins. (Indexing would make a tensor of it, at ten times the cost.)"""
    return [0 if v is None else v.data_ptr() + k * v.stride(0) * v.element_size() for v in tensors]


FIRST_WEIGHT = 4  # inputs of the Function before the weights: source, h0, c0, embedding
_LARGE = 1 << 16  # scalars from which arrays are kept for the next step (csrc/bindings/array_cache.cpp)


def _kept(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An array of a training step, not initialised. (torch can't resize it, as it can't what requires a gradient.)"""
    if math.prod(shape) < _LARGE:
        return torch.empty(shape, dtype=dtype)
    return torch.utils.dlpack.from_dlpack(native.load().array(shape, dtype == torch.float64))


def forward(
    layout: Layout, source: Tensor, h0: Tensor, c0: Tensor, embedding: Tensor | None, weights: tuple, keep: bool
) -> tuple:
    """Output, h_n, c_n, and what backward reads: the input of each later layer; h, c and gates of each direction.

    source: (T, B, I) or (N, I), or ids; h0 (LD, B, P), c0 (LD, B, H); embedding: of the ids, (V, I), or None; weights:
    torch's flat list.
    """
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    x, between, kept = source, [], []
    for layer in range(layout.layers):
        if layer:
            between.append(x)
        found = []
        for d in range(layout.directions):
            k = layer * layout.directions + d
            states = _addresses(k, h_n, c_n, h0, c0)
            found.append(_direction(layout, k, x, states, embedding, layout.parts(weights, k), keep))
        kept += found
        x = found[0][0] if layout.directions == 1 else torch.cat([h for h, _, _ in found], -1)
    return x, h_n, c_n, between, kept


def _direction(
    layout: Layout, k: int, x: Tensor, states: list[int], embedding: Tensor | None, parts: tuple, keep: bool
) -> tuple:
    """Layer and direction number k: h, c and gates; these two are None unless kept. states: addresses."""
    H, dtype = layout.H, layout.dtype
    w_ih, w_hh, bias, w_hr = parts
    ids = layout.V > 0 and k < layout.directions
    if ids:
        w_ih, bias = native_table(embedding, w_ih, bias), None
    rows = x.shape if ids else x.shape[:-1]
    h = (_kept if keep else torch.empty)((*rows, layout.P), dtype=dtype)
    c = _kept((*rows, H), dtype) if keep else None
    gates = _kept((*rows, 4 * H), dtype) if keep else None
    h_n, c_n, h0, c0 = states
    native.load().lstm_forward(
        **layout.shape(reverse=k % layout.directions == 1),
        h=h.data_ptr(),
        c=_address(c),
        gates=_address(gates),
        h_n=h_n,
        c_n=c_n,
        xg=w_ih.data_ptr() if ids else 0,
        ids=x.data_ptr() if ids else 0,
        bias=_address(bias),
        w_hh=w_hh.data_ptr(),
        w_hr=_address(w_hr),
        h0=h0,
        c0=c0,
        x=0 if ids else x.data_ptr(),
        w_x=0 if ids else w_ih.data_ptr(),
        I=0 if ids else x.shape[-1],
    )
    return h, c, gates


class Layers(_SingleLevelFunction):
    """`forward` with its gradients."""

    @staticmethod
    def forward(
        ctx, layout: Layout, source: Tensor, h0: Tensor, c0: Tensor, embedding: Tensor | None, *weights: Tensor
    ) -> tuple:
        out, h_n, c_n, between, kept = forward(layout, source, h0, c0, embedding, weights, keep=True)
        ctx.layout, ctx.counts = layout, (len(weights), len(between))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(source, h0, c0, embedding, *weights, *between, *(v for three in kept for v in three))
        return out, h_n, c_n

    @staticmethod
    def backward(ctx, d_out: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None) -> tuple:
        source, h0, c0, embedding, *rest = saved = ctx.saved_tensors
        weights, rest = rest[: ctx.counts[0]], rest[ctx.counts[0] :]
        grads = (d_out, dh_n, dc_n)
        if not unrecorded(*grads, *saved):
            return None, *_through_ops(ctx, grads, (source, h0, c0, embedding, *weights))
        between, kept = rest[: ctx.counts[1]], rest[ctx.counts[1] :]
        grads = tuple(None if g is None else g.to(h0.dtype).contiguous() for g in grads)
        return None, *_Backward(ctx, grads, [source, *between], (h0, c0), embedding, weights, kept).run()


class _Backward:
    """One backward pass through all layers, from the last to the first."""

    def __init__(
        self,
        ctx,
        grads: tuple,
        inputs: list[Tensor],
        states: tuple,
        embedding: Tensor | None,
        weights: list,
        kept: list,
    ) -> None:
        self.layout: Layout = ctx.layout
        self.wanted = ctx.needs_input_grad[1:]
        self.d_out, self.dh_n, self.dc_n = grads
        self.inputs, self.embedding, self.weights, self.kept = inputs, embedding, weights, kept
        self.h0, self.c0 = states
        self.dh0, self.dc0 = torch.empty_like(self.h0), torch.empty_like(self.c0)
        self.d_embedding: Tensor | None = None
        self.d_weights: list[Tensor | None] = [None] * len(weights)

    def run(self) -> list[Tensor | None]:
        """Gradients of source, h0, c0, embedding and the weights."""
        layout, d_out = self.layout, self.d_out
        for layer in reversed(range(layout.layers)):
            each, below = layout.each * layout.directions, None
            before = FIRST_WEIGHT + each * layer if layer else 1  # states and weights below want it too
            wants_dx = any(self.wanted[:before])
            for d in range(layout.directions):
                dx = self._direction(layer, d, self._share(d_out, d), wants_dx)
                below = dx if below is None or dx is None else below.add_(dx)
            d_out = below
        return [d_out, self.dh0, self.dc0, self.d_embedding, *self.d_weights]

    def _share(self, d_out: Tensor | None, d: int) -> Tensor | None:
        """What of the gradient at a layer's output is direction d's."""
        P = self.layout.P
        return d_out if d_out is None or self.layout.directions == 1 else d_out[..., d * P : (d + 1) * P].contiguous()

    def _direction(self, layer: int, d: int, dh: Tensor | None, wants_dx: bool) -> Tensor | None:
        layout, k = self.layout, layer * self.layout.directions + d
        first = k * layout.each
        w_ih, w_hh, *rest = self.weights[first : first + layout.each]
        wanted = self.wanted[FIRST_WEIGHT + first : FIRST_WEIGHT + first + layout.each]
        x, (h, c, gates) = self.inputs[layer], self.kept[3 * k : 3 * k + 3]
        ids, of_bias = layout.V > 0 and layer == 0, layout.bias and any(wanted[2:4])
        of_table = self.wanted[3], wanted[0], of_bias
        if ids:
            d_in = torch.empty((layout.V, 4 * layout.H), dtype=layout.dtype) if any(of_table) else None
        else:
            d_in = torch.empty_like(w_ih) if wanted[0] else None
        dx = _kept(x.shape, x.dtype) if wants_dx and not ids else None
        dw_hh = torch.empty_like(w_hh) if wanted[1] else None
        dbias = torch.empty_like(rest[0]) if of_bias and not ids else None
        dw_hr = torch.empty_like(rest[-1]) if layout.projected and wanted[-1] else None
        dh0, dc0, dh_n, dc_n, c0, h0 = _addresses(k, self.dh0, self.dc0, self.dh_n, self.dc_n, self.c0, self.h0)
        w_hr = rest[-1] if layout.projected else None
        native.load().lstm_backward(
            **layout.shape(reverse=d == 1),
            dh0=dh0,
            dc0=dc0,
            dh=_address(dh),
            dh_n=dh_n,
            dc_n=dc_n,
            gates=gates.data_ptr(),
            c=c.data_ptr(),
            c0=c0,
            w_hh=w_hh.data_ptr(),
            w_hr=_address(w_hr),
            dx=_address(dx),
            dw_x=_address(d_in),
            dbias=_address(dbias),
            dw_hh=_address(dw_hh),
            dw_hr=_address(dw_hr),
            x=0 if ids else x.data_ptr(),
            ids=x.data_ptr() if ids else 0,
            w_x=0 if ids else w_ih.data_ptr(),
            h=h.data_ptr(),
            h0=h0,
            I=0 if ids else w_ih.shape[1],
            V=layout.V if ids else 0,
        )
        if ids:
            d_embedding, d_in, dbias = native_gradients(d_in, self.embedding, w_ih, of_table)
            self.d_embedding = d_embedding if self.d_embedding is None else self.d_embedding.add_(d_embedding)
        made = [d_in, dw_hh, *[dbias] * (2 * layout.bias)]
        if layout.projected:
            made.append(dw_hr)
        self.d_weights[first : first + layout.each] = made
        return dx


def _through_ops(ctx, grads: tuple, inputs: tuple) -> list[Tensor | None]:
    """The gradients by operations that torch can differentiate and batch, for whoever does (create_graph, vmap)."""
    wanted = [k for k, want in enumerate(ctx.needs_input_grad[1:]) if want]
    given = [k for k, g in enumerate(grads) if g is not None]
    found: list[Tensor | None] = [None] * len(inputs)
    if not given:
        return found
    record, inputs = torch.is_grad_enabled(), list(inputs)
    with torch.enable_grad():
        for k in wanted:
            inputs[k] = inputs[k].view_as(inputs[k])  # so that what one input is to another does not count
        outputs = ctx.layout.through_ops(*inputs)
    outs, heads = [outputs[k] for k in given], [grads[k] for k in given]
    made = torch.autograd.grad(outs, [inputs[k] for k in wanted], heads, create_graph=record, allow_unused=True)
    for k, grad in zip(wanted, made, strict=True):
        found[k] = grad
    return found


leave_alone(sys.modules[__name__])
