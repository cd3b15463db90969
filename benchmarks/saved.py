"""What a forward call keeps for backward: the bytes of the tensors that autograd saves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import fastlstm
from benchmarks.work import same_weights


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


def saved(T: int, B: int, H: int, L: int = 1) -> dict[str, int]:
    """Return the bytes kept by `torch` (nn.LSTM), `cpu` (fastlstm) and `recompute`: L layers on (T, B, H), I = H, float32.

    The input counts, since all of them keep it. Raises AssertionError where outputs differ.
    """
    theirs = nn.LSTM(H, H, L)
    modules = {
        "torch": theirs,
        "cpu": same_weights(fastlstm.LSTM(H, H, L), theirs),
        "recompute": same_weights(fastlstm.LSTM(H, H, L, recompute=True), theirs),
    }
    x, found = torch.randn(T, B, H, requires_grad=True), {}
    expected = theirs(x)[0].detach()
    with fastlstm.backend("cpu"):
        for name, module in modules.items():
            torch.testing.assert_close(module(x)[0].detach(), expected, rtol=1e-4, atol=1e-5)
            found[name] = saved_bytes(partial(module, x), list(module.parameters()))
    return found
