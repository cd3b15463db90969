"""What a forward call keeps for backward: the bytes of the tensors that autograd saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import fastlstm
from benchmarks.record import Row, quantiles
from benchmarks.work import ALLOWED, agree, same_weights


def saved_bytes(call: Callable[[], object], parameters: list[Tensor]) -> int:
    """Return the bytes of all storages that autograd saves in `call`, parameters left out, each counted once."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    found: dict[int, int] = {}
    kept = []  # alive until the end: an address must not be given out twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(found.values())


def rows(T: int, B: int, H: int, L: int = 1) -> list[Row]:
    """Return the bytes kept by `torch` (nn.LSTM), `cpu` (fastlstm) and `recompute`: L layers on (T, B, H), I = H, float32.

    The input counts, since all of them keep it. Raises WrongOutputError where outputs differ.
    """
    theirs = nn.LSTM(H, H, L)
    ours, lean = (same_weights(fastlstm.LSTM(H, H, L, recompute=on), theirs) for on in (False, True))
    x, base = torch.randn(T, B, H, requires_grad=True), Row(f"saved/L{L}-H{H}", "", "B", T=T, B=B, I=H, H=H, P=H, L=L)
    expected, found = theirs(x)[0].detach().double(), []
    with fastlstm.backend("cpu"):
        for name, module in {"torch": theirs, "cpu": ours, "recompute": lean}.items():
            agree(name, [module(x)[0].detach()], [expected], ALLOWED[torch.float32])
            size = float(saved_bytes(partial(module, x), list(module.parameters())))
            ratio = (found[0].p50 if found else size) / size
            made = quantiles(replace(base, contender=name, training=True, directions=1), [size], [ratio])
            found.append(replace(made, calls=1))
    return found
