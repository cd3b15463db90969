"""THE definition of int8 inference: one LSTM layer in one direction, with int8 weights and rows that are quantised as they come.

    s = max|row| / 127,  q = row · (127 / max|row|), rounded half to even          one scale a row of W, of x_t and of h_{t-1}
    z = (s_x ⊙ (q_x · q_W)) ⊙ s_W + b + (s_h ⊙ (q_h · q_U)) ⊙ s_U                 sums are exact integers, the rest float32
    c_t, h_t = cell(z, c_{t-1}) in float32            with projection: h_t = (s_m ⊙ (q_m · q_R)) ⊙ s_R, m = o ⊙ tanh(c_t)

The native kernels (csrc/cpu/int8_lstm.h) are held to this file. It runs on any device; sums of products of int8 numbers are
exact in float64. A row below 2⁻¹⁰⁰ counts as zeros and gives zeros. A row that holds NaN or infinity has the scale NaN, so
that what depends on it is NaN.

Shapes: N rows of all steps, B batch, I input, H hidden, P width of h (H without projection).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm._torch_compat import describe_object
from fastlstm.ops.reference import activate, by_step, steps

SMALLEST = 2.0**-100  # of 127 / max|row| and max|row| / 127, neither overflows nor loses bits above it
WIDEST = (2**31 - 1) // (127 * 128)  # columns whose sum an int32 holds


class Matrix(NamedTuple):
    """An int8 matrix (rows, K) with the scales of its rows, (rows,) float32."""

    q: Tensor
    scale: Tensor

    @staticmethod
    def of(name: str, w: Tensor) -> Matrix:
        """Quantise a float32 matrix. Raises ValueError where it holds NaN or infinity."""
        q, scale = quantise_rows(w)
        if bool(scale.isnan().any()):
            raise ValueError(f"{name} holds NaN or infinity, expected finite weights; int8 has no such numbers")
        return Matrix(q, scale[:, 0])


class Int8Weights(NamedTuple):
    """The weights of one layer and direction; None for what the module does not have."""

    w_ih: Matrix  # (4H, I)
    w_hh: Matrix  # (4H, P)
    bias: Tensor | None  # (4H,) float32, the sum of both biases
    w_hr: Matrix | None  # (P, H)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 numbers shaped as x (N, K), and the scale of each row, (N, 1) float32; x: float32, else TypeError."""
    if x.dtype != torch.float32:
        raise TypeError(f"rows to quantise are {x.dtype}, expected torch.float32; cast them with .float()")
    largest = x.abs().amax(-1, keepdim=True)
    finite, zero = largest.isfinite(), largest < SMALLEST
    scale = torch.where(finite, largest / 127, torch.nan).masked_fill(zero, 0)
    inverse = torch.where(finite & ~zero, torch.full_like(largest, 127) / largest, 0)  # 127 / x would round twice
    return torch.where(finite, x * inverse, 0).round().to(torch.int8), scale


def product(x: Tensor, w: Matrix) -> Tensor:
    """x @ wᵀ by int8 products: (N, K) float32 in, (N, rows) float32 out."""
    q, scale = quantise_rows(x)
    return scale * (q.double() @ w.q.double().t()).float() * w.scale


def input_gates(x: Tensor, weights: Int8Weights) -> Tensor:
    """The input side of the pre-activations with the bias: (N, I) → (N, 4H)."""
    gates = product(x, weights.w_ih)
    return gates if weights.bias is None else gates + weights.bias


def check_embedding(tokens: int, embedding: Tensor | None, weights: Int8Weights) -> None:
    """Raise ValueError where an embedding is not that of so many ids, or not what these weights take."""
    w = weights.w_ih.q
    if embedding is None:
        if w.shape[1] != tokens:
            raise ValueError(
                f"num_embeddings is {tokens}, expected {w.shape[1]}, the columns of weight_ih_l0 for one-hot ids"
            )
    elif embedding.dtype != torch.float32 or embedding.shape != (tokens, w.shape[1]) or embedding.device != w.device:
        raise ValueError(
            f"embedding.weight is {describe_object(embedding)}, expected float32 with shape {[tokens, w.shape[1]]} on "
            f"{w.device}; an int8 TokenLSTM keeps its embedding in float32"
        )


def token_table(tokens: int, embedding: Tensor | None, weights: Int8Weights) -> Tensor:
    """`input_gates` of every id's vector: (V, 4H). embedding: (V, I), None for one-hot ids."""
    check_embedding(tokens, embedding, weights)
    return input_gates(embedding, weights) if embedding is not None else _one_hot_gates(weights.w_ih.q.t(), weights)


def token_gates(ids: Tensor, tokens: int, embedding: Tensor | None, weights: Int8Weights) -> Tensor:
    """The rows of `token_table` at these ids, (..., 4H), without the others where the ids are fewer."""
    if ids.numel() >= tokens:
        return F.embedding(ids, token_table(tokens, embedding, weights))
    check_embedding(tokens, embedding, weights)
    if embedding is None:
        return _one_hot_gates(weights.w_ih.q.t()[ids], weights)
    rows = F.embedding(ids.reshape(-1), embedding)
    return input_gates(rows, weights).reshape(*ids.shape, -1)


def _one_hot_gates(columns: Tensor, weights: Int8Weights) -> Tensor:
    """`input_gates` of one-hot rows, given the column of W_ih that each reads, (..., 4H) int8: a product of one number."""
    q, scale = quantise_rows(weights.w_ih.scale.new_ones(1, 1))
    gates = scale[0] * (q.float()[0] * columns.float()) * weights.w_ih.scale
    return gates if weights.bias is None else gates + weights.bias


def layer(
    x_gates: Tensor,
    weights: Int8Weights,
    h0: Tensor,
    c0: Tensor,
    batch_sizes: Tensor | None,
    reverse: bool,
    h_read: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer in one direction over the whole sequence.

    Args:
        x_gates: (T, B, 4H) or (N, 4H), what `input_gates` gives; h0: (B, P); c0: (B, H); batch_sizes: (T,) or None.
        h_read: the h that the next step reads, shaped as the result; None: the one computed. A test gives a kernel's, since
            one rounding of h may change an integer, and with it every later step.

    Returns:
        h (T, B, P) or (N, P), h_n (B, P), c_n (B, H).
    """
    given = None if h_read is None else by_step(h_read.reshape(-1, h_read.shape[-1]), h_read, batch_sizes)
    gates, h = by_step(x_gates.reshape(-1, x_gates.shape[-1]), x_gates, batch_sizes), {}
    h_state, c_state, read = h0, c0, h0
    for t, _, n in steps(x_gates, batch_sizes, reverse):
        i, f, g, o = activate(product(read[:n], weights.w_hh) + gates[t])
        c = f * c_state[:n] + i * g
        h[t] = o * torch.tanh(c)
        if weights.w_hr is not None:
            h[t] = product(h[t], weights.w_hr)
        h_state, c_state = torch.cat([h[t], h_state[n:]]), torch.cat([c, c_state[n:]])
        read = h_state if given is None else torch.cat([given[t], h_state[n:]])
    out = torch.cat([h[t] for t in range(len(h))]) if h else x_gates.new_empty(0, h0.shape[1])
    return out.reshape(*x_gates.shape[:-1], h0.shape[1]), h_state, c_state
