"""Memory that a forward call keeps for the backward: the bytes of the tensors that autograd saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import fastlstm
from benchmarks.schema import Row, quantiles
from benchmarks.workload import ALLOWED, check_agreement, same_weights


def saved_bytes(call: Callable[[], object], parameters: list[Tensor]) -> int:
    """Return the bytes of all storages that autograd saves in `call`, without parameters. A storage counts once."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    sizes: dict[int, int] = {}
    kept = []  # keeps the storages alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(sizes.values())


def rows(T: int, B: int, H: int, L: int = 1) -> list[Row]:
    """Return the bytes that `torch` (nn.LSTM), `cpu` (fastlstm) and `recompute` keep: L layers, I = H, float32.

    The input (T, B, H) counts, since all three keep it.

    Raises:
        WrongOutputError: the outputs differ.
    """
    torch_lstm = nn.LSTM(H, H, L)
    lstm, recomputing = (same_weights(fastlstm.LSTM(H, H, L, recompute=on), torch_lstm) for on in (False, True))
    x, base = torch.randn(T, B, H, requires_grad=True), Row(f"saved/L{L}-H{H}", "", "B", T=T, B=B, I=H, H=H, P=H, L=L)
    expected, measured = torch_lstm(x)[0].detach().double(), []
    with fastlstm.backend("cpu"):
        for name, module in {"torch": torch_lstm, "cpu": lstm, "recompute": recomputing}.items():
            check_agreement(name, [module(x)[0].detach()], [expected], ALLOWED[torch.float32])
            size = float(saved_bytes(partial(module, x), list(module.parameters())))
            ratio = (measured[0].p50 if measured else size) / size
            row = quantiles(replace(base, contender=name, training=True, directions=1), [size], [ratio])
            measured.append(replace(row, calls=1))
    return measured
