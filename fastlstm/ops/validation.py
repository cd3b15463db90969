"""The one gate before the kernels: every argument of the op has the type, device and size that the others imply.

Kernels take raw addresses, so nothing that fails here may reach one. What comes out is contiguous.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fastlstm._torch_compat import dynamo_skip
from fastlstm.memory import check_whole
from fastlstm.ops.arguments import SAVE_ALL, SAVE_NOTHING, Grads, OpInputs, Saved
from fastlstm.ops.reference import cell_type

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def checked_inputs(inputs: OpInputs) -> OpInputs:
    """Return the arguments of `lstm_forward`, contiguous; raises RuntimeError naming the one that does not fit."""
    x, ids, w_x, bias, w_hh, w_hr, h0, c0, batch_sizes, offsets, reset, reverse, save = inputs
    _check_kinds(x, ids, w_x, w_hh, h0, c0, save)
    H, P, dtype = w_hh.shape[0] // 4, w_hh.shape[1], w_hh.dtype
    if w_hr is None and P != H:
        raise RuntimeError(f"lstm_forward: w_hh has shape {list(w_hh.shape)}, expected (4H, H) without w_hr")
    source, T, B = _rows(x, ids, h0, batch_sizes)
    lead, device = source.shape[: 1 if batch_sizes is not None else 2], w_hh.device
    if ids is None:
        _expect("x", x, (*lead, w_x.shape[-1]), dtype, device)
        _expect("w_x", w_x, (4 * H, x.shape[-1]), dtype, device)
    else:
        _expect("ids", ids, lead, torch.int64, device)
        _expect("w_x (the table)", w_x, (w_x.shape[0], 4 * H), dtype, device)
        ids_in_range(ids, w_x.shape[0])
        if bias is not None:
            raise RuntimeError("lstm_forward: bias is given with ids, expected None; add it to the table")
    _expect("w_hh", w_hh, (4 * H, P), dtype, device)
    _expect("bias", bias, (4 * H,), dtype, device)
    _expect("w_hr", w_hr, (P, H), dtype, device)
    _expect("h0", h0, (B, P), dtype, device)
    _expect("c0", c0, (B, H), cell_type(dtype), device)
    _expect("reset", reset, lead, torch.bool, device)
    _check_packing(batch_sizes, offsets, T, B, lead, device)
    return OpInputs(*map(_contiguous, inputs[:-2]), bool(reverse), int(save))


def _check_kinds(
    x: Tensor | None, ids: Tensor | None, w_x: Tensor, w_hh: Tensor, h0: Tensor, c0: Tensor, save: int
) -> None:
    """What the sizes of everything else follow from is there, and is of a kind that has sizes."""
    if (x is None) == (ids is None):
        raise RuntimeError("lstm_forward: exactly one of x and ids must be given; pass None for the other")
    if save not in (0, 1, 2):
        raise RuntimeError(f"lstm_forward: save is {save}, expected 0 (inference), 1 (keep c and gates) or 2 (keep c)")
    if w_hh.dim() != 2 or w_hh.shape[0] % 4 or w_hh.numel() == 0:
        raise RuntimeError(f"lstm_forward: w_hh has shape {list(w_hh.shape)}, expected (4H, P)")
    if w_hh.dtype not in TYPES:
        raise RuntimeError(f"lstm_forward: w_hh is {w_hh.dtype}, expected float32, float64, bfloat16 or float16")
    for name, value in (("w_x", w_x), ("h0", h0), ("c0", c0)):
        if value.dim() != 2:
            raise RuntimeError(f"lstm_forward: {name} has {value.dim()} dimensions, expected 2")


def checked_gradients(inputs: OpInputs, saved: Saved, grads: Grads) -> tuple[Saved, Grads]:
    """Return what `lstm_backward` takes besides its checked inputs, contiguous; raises as `checked_inputs` does."""
    if inputs.save == SAVE_NOTHING:
        raise RuntimeError("lstm_backward: save is 0, which keeps nothing for backward; run forward with save 1 or 2")
    w_hh, h0, c0, lead = inputs.w_hh, inputs.h0, inputs.c0, inputs.lead
    dtype, device, H = w_hh.dtype, w_hh.device, c0.shape[1]
    _expect("h", saved.h, (*lead, h0.shape[1]), dtype, device)
    _expect("c", saved.c, (*lead, H), c0.dtype, device)
    _expect("gates", saved.gates, (*lead, 4 * H) if inputs.save == SAVE_ALL else (0,), dtype, device)
    _expect("dh", grads.dh, saved.h.shape, dtype, device)
    _expect("dc", grads.dc, saved.c.shape, c0.dtype, device)
    _expect("dh_n", grads.dh_n, h0.shape, dtype, device)
    _expect("dc_n", grads.dc_n, c0.shape, c0.dtype, device)
    return Saved(*map(_contiguous, saved)), Grads(*map(_contiguous, grads))


def _contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def _rows(x: Tensor | None, ids: Tensor | None, h0: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, int, int]:
    """What the rows are read from, T and B; raises where x or ids has the wrong number of dimensions."""
    name, source, dims = ("x", x, 3) if ids is None else ("ids", ids, 2)
    dims -= batch_sizes is not None
    if source.dim() != dims:
        kind = "dense" if batch_sizes is None else "packed"
        raise RuntimeError(f"lstm_forward: {name} has {source.dim()} dimensions, expected {dims} for {kind} input")
    if batch_sizes is None:
        return source, source.shape[0], source.shape[1]
    if batch_sizes.dim() != 1 or batch_sizes.numel() == 0:
        raise RuntimeError(f"lstm_forward: batch_sizes has shape {list(batch_sizes.shape)}, expected (T,) with T > 0")
    return source, batch_sizes.shape[0], h0.shape[0]


def _expect(name: str, value: Tensor | None, shape: tuple, dtype: torch.dtype, device: torch.device) -> None:
    if value is None:
        return
    if value.shape != shape:
        raise RuntimeError(f"fastlstm: {name} has shape {list(value.shape)}, expected {list(shape)}")
    if value.dtype != dtype:
        raise RuntimeError(f"fastlstm: {name} is {value.dtype}, expected {dtype}")
    if value.device != device:
        raise RuntimeError(f"fastlstm: {name} is on {value.device}, expected {device} as w_hh")
    if value.layout is not torch.strided:
        raise RuntimeError(f"fastlstm: {name} has layout {value.layout}, expected a dense tensor; use .to_dense()")
    if value.is_cpu:
        check_whole((f"fastlstm: {name}", value))


def on_one_device(op: str, batch_sizes: Tensor | None, like: Tensor, *tensors: Tensor | None) -> None:
    """Raise where tensors lie on several devices: with one on meta, torch asks for shapes where the others hold numbers."""
    if batch_sizes is not None and batch_sizes.device.type != "cpu":
        raise RuntimeError(f"{op}: batch_sizes is on {batch_sizes.device}, expected cpu")
    for v in tensors:
        if v is not None and v.device != like.device:
            raise RuntimeError(
                f"{op}: a tensor with shape {list(v.shape)} is on {v.device}, expected {like.device} as the others"
            )


def ids_in_range(ids: Tensor, V: int) -> None:
    """Ids lie in 0 … V - 1: IndexError on the CPU. Elsewhere that is for the kernels to tell: the host would wait."""
    if ids.numel() == 0:
        return
    if ids.device.type != "cpu":
        if V == 0:
            raise IndexError(
                "ids are given with a table of 0 rows, expected a row for each symbol; check the vocabulary"
            )
        return
    low, high = torch.aminmax(ids)
    if low < 0 or high >= V:
        bad = int(low if low < 0 else high)
        raise IndexError(f"ids hold {bad}, expected 0 to {V - 1} (the table has {V} rows); check the vocabulary")


def _check_packing(
    batch_sizes: Tensor | None, offsets: Tensor | None, T: int, B: int, lead: torch.Size, device: torch.device
) -> None:
    if batch_sizes is None:
        if offsets is not None:
            raise RuntimeError("fastlstm: offsets is given without batch_sizes; pass both for packed input or neither")
        return
    _expect("batch_sizes", batch_sizes, (T,), torch.int64, torch.device("cpu"))
    _expect("offsets", offsets, (T,), torch.int64, device)
    sizes = batch_sizes.tolist()
    falling = all(a >= b for a, b in itertools.pairwise(sizes))
    if not falling or sizes[-1] < 1 or sizes[0] != B or sum(sizes) != lead[0]:
        raise RuntimeError(
            f"fastlstm: batch_sizes must fall from B = {B} to at least 1 and sum to the {lead[0]} rows of x or ids, "
            f"got {sizes[:8]}{' …' if T > 8 else ''} with sum {sum(sizes)}"
        )
    if offsets is None:
        raise RuntimeError("fastlstm: offsets is None with batch_sizes, expected their exclusive cumulative sum")
    if device.type == "cpu" and not torch.equal(offsets, batch_sizes.cumsum(0) - batch_sizes):
        raise RuntimeError("fastlstm: offsets is not the exclusive cumulative sum of batch_sizes")


dynamo_skip(__name__)
