"""What every backend shares: the description of a call, and the helpers around the recurrence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """One call of the op, as `why_not` and `plan` see it. Sizes as in DESIGN: N rows of all steps, P width of h."""

    device: torch.device
    dtype: torch.dtype
    T: int
    B: int
    N: int
    I: int  # noqa: E741 - the field's name; 0 with ids
    V: int
    H: int
    P: int
    packed: bool
    token: bool
    projected: bool
    reverse: bool
    reset: bool
    save: int
    training: bool


def spec_of(
    x: Tensor | None,
    ids: Tensor | None,
    w_x: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    save: int,
) -> Spec:
    """Describe a call from its arguments."""
    source = ids if x is None else x
    packed = batch_sizes is not None
    T = batch_sizes.shape[0] if packed else source.shape[0]
    B = h0.shape[0]
    token = ids is not None
    return Spec(
        device=w_hh.device,
        dtype=w_hh.dtype,
        T=T,
        B=B,
        N=source.shape[0] if packed else T * B,
        I=0 if token else x.shape[-1],
        V=w_x.shape[0] if token else 0,
        H=w_hh.shape[0] // 4,
        P=w_hh.shape[1],
        packed=packed,
        token=token,
        projected=w_hr is not None,
        reverse=bool(reverse),
        reset=reset is not None,
        save=int(save),
        training=save > 0,
    )


def input_gates(x: Tensor | None, ids: Tensor | None, w_x: Tensor, bias: Tensor | None) -> Tensor:
    """Return the input side of the pre-activations, (T, B, 4H) or (N, 4H): one product, or rows of the table."""
    if ids is not None:
        return w_x[ids]
    return torch.nn.functional.linear(x, w_x, bias)


def previous_rows(
    h0: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, reverse: bool, T: int, N: int
) -> Tensor:
    """Return (N,) indices of every row's predecessor in cat(zero row, h0, rows of all steps)."""
    B = h0.shape[0]
    sizes = [B] * T if batch_sizes is None else batch_sizes.tolist()
    offsets = [0]
    for n in sizes:
        offsets.append(offsets[-1] + n)
    start = torch.arange(1, B + 1)
    parts = []
    for t, n in enumerate(sizes):
        before = t + 1 if reverse else t - 1
        inside = min(n, sizes[before]) if 0 <= before < T else 0
        follow = torch.arange(inside) + (1 + B + offsets[before] if inside else 0)
        parts.append(torch.cat([follow, start[inside:n]]))
    index = (torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)).to(h0.device)
    return index if reset is None else index.masked_fill(reset.reshape(N), 0)


def h_previous(h: Tensor, h0: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, reverse: bool) -> Tensor:
    """Return (N, P): the h that every row's step read. The general case; the dense one in ops.py makes no copy."""
    P = h.shape[-1]
    rows = h.reshape(-1, P)
    T = h.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    index = previous_rows(h0, batch_sizes, reset, reverse, T, rows.shape[0])
    return torch.cat([h0.new_zeros(1, P), h0, rows])[index]


def activate(z: Tensor) -> Tensor:
    """Return the activated gates i, f, g, o of pre-activations (..., 4H)."""
    i, f, g, o = z.chunk(4, -1)
    return torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1)


def recompute_gates(x, ids, w_x, bias, w_hh, h0, batch_sizes, offsets, reset, reverse, h) -> Tensor:
    """Return the activated gates from inputs and saved h (save=2): two products, no recurrence.

    Half types are computed in float32 and rounded once, as the forward kernels do.
    """
    real = torch.float64 if w_hh.dtype == torch.float64 else torch.float32
    wide = [None if v is None else v.to(real) for v in (x, w_x, bias, w_hh)]
    z = input_gates(wide[0], ids, wide[1], wide[2])
    before = h_previous(h, h0, batch_sizes, reset, reverse).to(real)
    z = torch.addmm(z.reshape(-1, z.shape[-1]), before, wide[3].t()).view(z.shape)
    return activate(z).to(w_hh.dtype)
