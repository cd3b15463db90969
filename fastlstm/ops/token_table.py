"""The table of a TokenLSTM's first layer: every id's share of the gates, `E W_ihᵀ + b`, and its gradients.

E is None for one-hot ids; the table is then `W_ihᵀ + b`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip
from fastlstm.ops.gemm import native_matmul


def token_table(embedding: Tensor | None, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """The table (V, 4H) by torch's operations. embedding: (V, E) or None; w_ih: (4H, E or V); bias: (4H,) or None."""
    if embedding is None:
        return w_ih.t() if bias is None else w_ih.t() + bias
    return F.linear(embedding.to(w_ih.dtype), w_ih, bias)


def native_table(embedding: Tensor | None, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """The same, contiguous, of plain tensors on the CPU where nobody records."""
    if embedding is None:
        return token_table(None, w_ih, bias).contiguous()
    start = None if bias is None else bias.repeat(embedding.shape[0], 1)
    return native_matmul(embedding, w_ih.t(), start)


class Gradients(NamedTuple):
    """What follows from the gradient of a table; None where it is not wanted, or there is nothing."""

    embedding: Tensor | None
    w_ih: Tensor | None
    bias: Tensor | None


def native_gradients(
    d_table: Tensor | None, embedding: Tensor | None, w_ih: Tensor, needs_grad: tuple[bool, bool, bool]
) -> Gradients:
    """Of embedding, w_ih and bias, from the gradient (V, 4H) of the table; needs_grad: which. Plain tensors on the CPU."""
    if d_table is None:
        return Gradients(None, None, None)
    of_embedding, of_w_ih, of_bias = needs_grad
    dw = None
    if of_w_ih:
        dw = d_table.t().contiguous() if embedding is None else native_matmul(d_table.t(), embedding)
    return Gradients(
        native_matmul(d_table, w_ih) if of_embedding and embedding is not None else None,
        dw,
        torch.sum(d_table, 0) if of_bias else None,
    )


dynamo_skip(__name__)
