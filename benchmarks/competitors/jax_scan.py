"""JAX: `lax.scan` over the steps under jit, the input product of all steps before it. XLA picks its own threads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.competitors import AbsentError, Competitor, require, require_plain
from benchmarks.layer import PreparedLayer


def scan(prepared: PreparedLayer) -> Competitor:
    """Forward, or forward and `vjp`, compiled as one function."""
    require_plain(prepared)
    require("jax")
    if prepared.call.device != "cpu" or prepared.call.dtype != torch.float32:
        raise AbsentError("this competitor is written for float32 on the CPU")
    import jax

    zero = torch.zeros(prepared.lstm.num_layers, prepared.call.case.B, prepared.lstm.hidden_size)
    arrays = [
        [_array(v) for v in group]
        for group in (prepared.lstm.parameters(), (prepared.rows,), prepared.state or (zero, zero))
    ]
    weights, (x,), state = arrays
    if prepared.call.train:
        function, arguments = jax.jit(_with_gradients), (weights, x, state, _array(prepared.upstream))
    else:
        function, arguments = jax.jit(_forward), (weights, x, state)

    def timed() -> object:
        return jax.block_until_ready(function(*arguments))

    def compared() -> list[Tensor]:
        return [torch.from_numpy(np.array(value)) for value in jax.tree_util.tree_leaves(timed())]

    return Competitor(timed, compared)


def _array(value: Tensor):
    import jax

    return jax.device_put(value.detach().numpy(), jax.devices("cpu")[0])


def _forward(weights: list, x, state: list):
    """weights: nn.LSTM's flat list; x (T, B, I); state: h0, c0 (L, B, H). Returns output, h_n, c_n."""
    from jax import lax, numpy

    h, c = [], []
    for k in range(len(weights) // 4):
        w_ih, w_hh, b_ih, b_hh = weights[4 * k : 4 * k + 4]
        x_gates = x @ w_ih.T + (b_ih + b_hh)
        (h_k, c_k), x = lax.scan(
            lambda carry, x_gates_t, w=w_hh: _cell(carry, x_gates_t, w), (state[0][k], state[1][k]), x_gates
        )
        h.append(h_k)
        c.append(c_k)
    return x, numpy.stack(h), numpy.stack(c)


def _cell(carry, x_gates_t, w_hh):
    import jax

    h, c = carry
    i, f, g, o = jax.numpy.split(x_gates_t + h @ w_hh.T, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
    h = jax.nn.sigmoid(o) * jax.numpy.tanh(c)
    return (h, c), h


def _with_gradients(weights: list, x, state: list, upstream):
    """What `_forward` returns, then gradients of x and of every weight."""
    import jax

    outputs, pull = jax.vjp(lambda weights, x: _forward(weights, x, state), weights, x)
    dweights, dx = pull((upstream, jax.numpy.zeros_like(outputs[1]), jax.numpy.zeros_like(outputs[2])))
    return outputs, dx, dweights
