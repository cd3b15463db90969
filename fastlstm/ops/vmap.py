"""torch.vmap for the op. K vmapped calls with the same weights are one call with a batch K times as large.

The new axis goes behind the batch axis (dense) or the row axis (packed): sequence (b, k) is row b·K + k, which keeps
packed rows sorted. Where weights or batch sizes differ from call to call, the calls run one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlstm.ops.arguments import Grads, OpInputs, Saved

Dims = tuple[int | None, ...]

_STATE = "dh_n dc_n h0 c0"
_ROWS = "dh dc x ids reset h c gates"
_FORWARD = [*OpInputs._fields]
_BACKWARD = [*Grads._fields, *OpInputs._fields, *Saved._fields]


def register(library: torch.library.Library) -> None:
    """Register the rules, where this torch can (2.5 and later)."""
    if hasattr(torch.library, "register_vmap"):
        for name, names, outputs in (
            ("lstm_forward", _FORWARD, "row row row state state"),
            ("lstm_backward", _BACKWARD, "row row state state"),
        ):
            torch.library.register_vmap(f"fastlstm::{name}", _rule(name, names, outputs.split()), lib=library)
        torch.library.register_vmap("fastlstm::sum_by_id", _sum_by_id, lib=library)


def _rule(name: str, names: list[str], outputs: list[str]) -> Callable:
    def rule(info, in_dims: Dims, *args: object) -> tuple[tuple[Tensor, ...], Dims]:
        op, K = getattr(torch.ops.fastlstm, name), info.batch_size
        moving = {n for n, dim in zip(names, in_dims, strict=True) if dim is not None}
        if moving - {*_STATE.split(), *_ROWS.split()}:
            return _one_by_one(op, K, in_dims, args)
        packed = args[names.index("batch_sizes")] is not None
        axis = {"row": 1 if packed else 2, "state": 1}
        folded = []
        for n, dim, value in zip(names, in_dims, args, strict=True):
            if n in ("batch_sizes", "offsets") and value is not None:
                folded.append(value * K)
            elif n in _STATE.split() or n in _ROWS.split():
                folded.append(_fold(value, dim, axis["state" if n in _STATE.split() else "row"], K))
            else:
                folded.append(value)
        results = op(*folded)
        dims = [None if y.dim() == 1 else axis[counts] for y, counts in zip(results, outputs, strict=True)]
        return tuple(y if d is None else _unfold(y, d, K) for y, d in zip(results, dims, strict=True)), tuple(dims)

    return rule


def _fold(value: Tensor | None, dim: int | None, axis: int, K: int) -> Tensor | None:
    """Put the vmapped axis (all copies alike if there is none) behind the batch axis and merge the two."""
    if value is None or (value.dim() == 1 and value.numel() == 0 and dim is None):
        return value  # not given, or not kept by this `save`
    if dim is None:
        value = value.unsqueeze(axis).expand(*value.shape[:axis], K, *value.shape[axis:])
    else:
        value = value.movedim(dim, axis)
    return value.flatten(axis - 1, axis)


def _unfold(value: Tensor, axis: int, K: int) -> Tensor:
    return value.unflatten(axis - 1, (value.shape[axis - 1] // K, K))


def _one_by_one(op: Callable, K: int, in_dims: Dims, args: tuple) -> tuple[tuple[Tensor, ...], Dims]:
    calls = []
    for k in range(K):
        pairs = zip(args, in_dims, strict=True)
        calls.append(op(*(value if dim is None else value.select(dim, k) for value, dim in pairs)))
    return tuple(torch.stack(same) for same in zip(*calls, strict=True)), (0,) * len(calls[0])


def _sum_by_id(info, in_dims: Dims, rows: Tensor, ids: Tensor, V: int) -> tuple[Tensor, int]:
    """K sums are one sum over K·V ids."""
    K = info.batch_size
    rows = rows.unsqueeze(0).expand(K, *rows.shape) if in_dims[0] is None else rows.movedim(in_dims[0], 0)
    ids = ids.unsqueeze(0).expand(K, *ids.shape) if in_dims[1] is None else ids.movedim(in_dims[1], 0)
    ids = ids + V * torch.arange(K, dtype=torch.int64, device=ids.device)[:, None]
    return torch.ops.fastlstm.sum_by_id(rows.flatten(0, 1), ids.flatten(), K * V).unflatten(0, (K, V)), 0
