"""Which route, backend and plan would run a module on an input, and why the others would not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm import backends, dispatch
from fastlstm.backends.cpu import small_call
from fastlstm.modules.call import Call, State, normalise
from fastlstm.modules.int8_lstm import Int8LSTM
from fastlstm.modules.layers import layers_in_one
from fastlstm.modules.lstm import LSTM
from fastlstm.modules.route import FUSED_CPU, TORCH, first_spec, route
from fastlstm.modules.token_lstm import TokenLSTM


def _few_rows(cls: type, call: Call) -> bool:
    """Whether the call goes in one native call instead (`LSTM.forward` tries that first)."""
    if (
        cls is not getattr(cls, "_exact_class", None)
        or torch.is_grad_enabled()
        or call.batch_sizes is not None
        or (call.training and any(call.masks))
    ):
        return False
    prepared = small_call.prepared(LSTM, dispatch.requested_name, dispatch.last_call)
    return prepared is not None and small_call.takes(call.stack, call.T, call.B, call.rows.dtype, call.batch_first)


def explain(
    module: nn.Module,
    x: Tensor | PackedSequence,
    hx: State | None = None,
    *,
    reset: Tensor | PackedSequence | None = None,
    return_cell_states: bool | None = None,
    return_gates: bool | None = None,
) -> str:
    """Say which route and backend would run a call of a module, what it would do, and what each other backend says of it.

    Args:
        module: an LSTM, TokenLSTM or Int8LSTM; nothing runs.
        x, hx, reset, return_cell_states, return_gates: as its forward takes them.

    Raises:
        TypeError: for another module. What `module(x)` raises where x does not fit.
    """
    lstm = module.lstm if isinstance(module, TokenLSTM) else module
    if isinstance(lstm, Int8LSTM):
        return lstm.describe()
    if not isinstance(lstm, LSTM):
        raise TypeError(f"module is a {type(module).__name__}, expected fastlstm.LSTM or fastlstm.TokenLSTM")
    cells = getattr(module, "return_cell_states", False) if return_cell_states is None else return_cell_states
    gates = getattr(module, "return_gates", False) if return_gates is None else return_gates
    tokens = module.tokens if isinstance(module, TokenLSTM) else None
    call = normalise(lstm, x, hx, reset, cells, gates, tokens)
    spec, chosen_route = first_spec(call), route(call)
    name = dispatch.requested_backend()
    how = "automatic choice" if name is None else f"'{name}' is forced"
    if chosen_route == TORCH:
        chosen, plan = "torch", "nn.LSTM's own kernels, the whole module"
    else:
        chosen = "cpu" if chosen_route == FUSED_CPU else dispatch.choose(spec)
        plan = backends.load(chosen).describe(spec)
        count, chained = layers_in_one(call, spec)
        if count > 1:
            plan = backends.load(chosen).describe_layers(spec, count, chained)
    if chosen_route == FUSED_CPU and _few_rows(type(module), call):
        plan, chosen_route = small_call.PLAN, f"{chosen_route}, few rows"
    lines = [f"runs on {chosen} ({how}): {plan.removeprefix(f'{chosen}: ')}", f"route: {chosen_route}"]
    if torch.is_grad_enabled():
        lines.append("gradients are on; without them (torch.no_grad) less is kept, and T · B ≤ 4 is one native call")
    for line in dispatch.describe(spec).splitlines():
        lines.append(f"  {line}")
    return "\n".join(lines)
