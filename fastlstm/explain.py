"""Which backend and plan would run a module on an input, and why the others would not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm import dispatch
from fastlstm.backends.common import Spec
from fastlstm.nn import LSTM
from fastlstm.tokens import TokenLSTM


def explain(module: nn.Module, x: Tensor | PackedSequence) -> str:
    """Say which backend would run `module(x)`, what it would do, and what each other backend says of the call.

    module: an LSTM or TokenLSTM; x: its input. Nothing runs. Raises TypeError for another module.
    """
    lstm = module.lstm if isinstance(module, TokenLSTM) else module
    if not isinstance(lstm, LSTM):
        raise TypeError(f"module is a {type(module).__name__}, expected fastlstm.LSTM or fastlstm.TokenLSTM")
    spec = _spec(module, lstm, x)
    name = dispatch.forced()
    how = "automatic choice" if name is None else f"'{name}' is forced"
    if dispatch.prefers_torch(spec):
        chosen, plan = "torch", "nn.LSTM's own kernels, the whole module"
    else:
        chosen = dispatch.choose(spec)
        plan = dispatch.backends.load(chosen).plan(spec)
    lines = [f"runs on {chosen} ({how}): {plan.removeprefix(f'{chosen}: ')}"]
    if torch.is_grad_enabled():
        lines.append("gradients are on; without them (torch.no_grad) less is kept and few rows go a shorter way")
    for line in dispatch.describe(spec).splitlines():
        lines.append(f"  {line}")
    return "\n".join(lines)


def _spec(module: nn.Module, lstm: LSTM, x: Tensor | PackedSequence) -> Spec:
    """The call of the first layer."""
    token, packed = isinstance(module, TokenLSTM), isinstance(x, PackedSequence)
    data = x.data if packed else x
    if packed:
        T, B, N = len(x.batch_sizes), int(x.batch_sizes[0]), data.shape[0]
    else:
        lead = data.shape if token else data.shape[:-1]
        T, B = (*lead, 1)[:2] if not (lstm.batch_first and len(lead) == 2) else lead[::-1]
        N = T * B
    w_hh = lstm._weights()[1]
    P, I, V = w_hh.shape[1], 0 if token else lstm.input_size, module.num_embeddings if token else 0
    save = (2 if lstm.recompute else 1) if torch.is_grad_enabled() else 0
    flags = (packed, token, bool(lstm.proj_size), False, False)
    return Spec(w_hh.device, w_hh.dtype, T, B, N, I, V, lstm.hidden_size, P, *flags, save, save > 0)
