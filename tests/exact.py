"""The op in 80-bit numbers: what float64 results are judged against, since in float64 the definition rounds as they do.

The same equations as `fastlstm.ops.reference`, in numpy's longdouble (64 bits of mantissa where the machine has them).
"""

from __future__ import annotations

import numpy as np
import torch

from fastlstm.ops import reference
from fastlstm.testing.cases import Grads, Inputs

EIGHTY_BITS = np.finfo(np.longdouble).nmant >= 63


def _long(v: torch.Tensor | None) -> np.ndarray | None:
    return None if v is None else v.detach().numpy().astype(np.longdouble)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def outputs(inputs: Inputs, grads: Grads, reverse: bool) -> dict[str, np.ndarray]:
    """Outputs and gradients, under the names of `accuracy.OP_OUTPUTS`; rows of all steps one after the other."""
    w_x, bias, w_hh, w_hr, h0, c0 = (_long(v) for v in (*inputs[2:6], inputs.h0, inputs.c0))
    rows_of = inputs.x if inputs.ids is None else inputs.ids
    order = list(reference.steps(rows_of, inputs.batch_sizes, reverse))
    if inputs.ids is not None:
        x_gates = w_x[inputs.ids.numpy().reshape(-1)]
    else:
        x = _long(inputs.x)
        x_gates = x.reshape(-1, x.shape[-1]) @ w_x.T + (0 if bias is None else bias)
    keep = np.ones((len(x_gates), 1)) if inputs.reset is None else 1 - inputs.reset.numpy().reshape(-1, 1)

    h, c = np.zeros((len(x_gates), w_hh.shape[1]), np.longdouble), np.zeros((len(x_gates), c0.shape[1]), np.longdouble)
    h_n, c_n, steps = h0.copy(), c0.copy(), []
    for _, rows, n in order:
        c_prev = c_n[:n] * keep[rows]
        i, f, g, o = np.split(x_gates[rows] + (h_n[:n] * keep[rows]) @ w_hh.T, 4, 1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c[rows] = f * c_prev + i * g
        h_unprojected = o * np.tanh(c[rows])
        h[rows] = h_unprojected if w_hr is None else h_unprojected @ w_hr.T
        h_n[:n], c_n[:n] = h[rows], c[rows]
        steps.append((i, f, g, o, c_prev))

    dh, dc, dh0, dc0 = (_long(v) for v in grads)
    dh, dc = dh.reshape(h.shape), dc.reshape(c.shape)
    d_gates, dh_proj = np.zeros_like(x_gates), np.zeros_like(h)
    for (_, rows, n), (i, f, g, o, c_prev) in zip(reversed(order), reversed(steps), strict=True):
        dh_proj[rows] = dh0[:n] + dh[rows]
        dh_unprojected = dh_proj[rows] if w_hr is None else dh_proj[rows] @ w_hr
        tanh_c = np.tanh(c[rows])
        d_cell = dc0[:n] + dc[rows] + dh_unprojected * o * (1 - tanh_c**2)
        parts = d_cell * g * i * (1 - i), d_cell * c_prev * f * (1 - f), d_cell * i * (1 - g**2)
        d_gates[rows] = np.concatenate((*parts, dh_unprojected * tanh_c * o * (1 - o)), 1)
        dh0[:n], dc0[:n] = (d_gates[rows] @ w_hh) * keep[rows], d_cell * f * keep[rows]
    values = h, c, h_n, c_n, d_gates, dh_proj, dh0, dc0
    return dict(zip(("h", "c", "h_n", "c_n", "d_gates", "dh_proj", "dh0", "dc0"), values, strict=True))
