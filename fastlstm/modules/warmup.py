"""Compiling Triton kernels ahead of the first call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlstm import dispatch
from fastlstm.backends.base import BackendError
from fastlstm.modules.int8_lstm import Int8LSTM, while_warming_up
from fastlstm.modules.lstm import LSTM, NNLSTM


def warm_up(module: nn.Module, x: object, training: bool = True) -> None:
    """Compile the Triton kernels that `module(x)` would run, and start none of them; later calls begin at once.

    module: a fastlstm.LSTM or TokenLSTM, or a model with them; x: an input of the type to come, of any number of steps;
    training: also what backward runs. Kernels are compiled for the current GPU once per type and tile, whatever T and B
    are later, and kept in Triton's cache folder. An Int8LSTM has no such kernels and is passed over. Raises BackendError with
    the reason where the backend cannot run.
    """
    kinds = {
        Int8LSTM if isinstance(m, Int8LSTM) else LSTM
        for m in module.modules()
        if isinstance(m, (Int8LSTM, LSTM, NNLSTM))
    }
    if kinds == {Int8LSTM}:
        return  # nothing to compile
    from fastlstm.backends.triton import backend as triton

    reason = triton.missing()
    if reason is not None:
        raise BackendError(f"backend 'triton' cannot run: {reason}")
    from fastlstm.backends.triton import launch

    # backward on this thread: in autograd's own threads `instead` would not hold
    same_thread, no_launch = torch.autograd.set_multithreading_enabled(False), launch.instead(launch.compile_only)
    with dispatch.backend("triton"), same_thread, no_launch, while_warming_up(), torch.set_grad_enabled(training):
        outputs = [y for y in _tensors(module(x)) if y.requires_grad]
        leaves = [p for p in module.parameters() if p.requires_grad]
        for used in (outputs[:1], outputs) if leaves else ():  # losses on the output alone, and on the last states too
            if used:
                zeros = [torch.zeros_like(y) for y in used]
                torch.autograd.grad(used, leaves, zeros, retain_graph=True, allow_unused=True)


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, (tuple, list)) else []
