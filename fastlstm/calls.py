"""What a module call is checked for and turned into before it runs: types, sizes, autocast, the choice of a way."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fastlstm import dispatch, layers
from fastlstm.backends.common import cell_type, spec_of
from fastlstm.backends.device import autocasts, own_types
from fastlstm.checks import TYPES
from fastlstm.layers import State

if TYPE_CHECKING:
    from fastlstm.nn import LSTM


def autocast_type(value: Tensor, packed: bool = False) -> torch.dtype:
    """The type that a value of a call has after autocast, which may be off: the type that torch's own LSTM op takes there.

    With cuDNN that is float16, whatever type autocast was given (aten/src/ATen/cudnn/AutocastRNN.cpp): the type of a result
    must not depend on who computes it. Elsewhere it is autocast's type; packed input on a CPU stays as it is, for torch's
    autocast there does not know the packed op. float64 stays.
    """
    device, dtype = value.device.type, value.dtype
    if not _casts(value, packed) or dtype == torch.float64 or not dtype.is_floating_point:
        return dtype
    cudnn = device == "cuda" and torch.backends.cudnn.enabled and torch.version.hip is None
    return torch.float16 if cudnn else torch.get_autocast_dtype(device)


def autocast(x: Tensor, hx: State, weights: list[Tensor], packed: bool = False) -> tuple[Tensor, State, list[Tensor]]:
    """Under autocast, everything in the type that `autocast_type` says; what is no state is left for torch to refuse."""
    if not _casts(x, packed):
        return x, hx, weights
    if is_state(hx):
        hx = hx[0].to(autocast_type(hx[0])), hx[1].to(autocast_type(hx[1]))
    return x.to(autocast_type(x)), hx, [w.to(autocast_type(w)) for w in weights]


def _casts(value: Tensor, packed: bool) -> bool:
    return autocasts(value) and not (packed and value.device.type == "cpu")


def by_torch(lstm: LSTM, given: tuple, cast: tuple, batch_sizes: Tensor | None) -> layers.Results:
    """The whole module by torch's own LSTM.

    given: x, hx and weights as they came; cast: as `autocast` left them. On CUDA torch casts for itself, all weights into
    one buffer that cuDNN needs; elsewhere, and in a graph of torch.compile, it would leave a part of them in float32.
    """
    if given[0].is_cuda and not torch.compiler.is_compiling():
        (x, hx, weights), off = given, nullcontext()
    else:
        (x, hx, weights), off = cast, own_types(given[0])
    with off:
        out, h_n, c_n = layers.whole(lstm, x, batch_sizes, hx, weights)
    return layers.Results(out, h_n, c_n, [], [])


def takes_torch(
    lstm: LSTM, x: Tensor, batch_sizes: Tensor | None, hx: State, weights: list[Tensor], extra: bool
) -> bool:
    """Whether torch's own LSTM runs this call: asked for, the better choice, or arguments that the op does not take.

    With `extra` results or resets, or masks that torch does not draw, only the op can; there a forced "torch" raises.
    """
    compiling = torch.compiler.is_compiling()
    forced = None if compiling else dispatch.forced()
    if not _op_takes(lstm, x, batch_sizes, hx, weights):
        steps = x.shape[1 if lstm.batch_first else 0] if batch_sizes is None else 1
        return steps == 0 or forced in (None, "torch")
    if extra or (lstm.training and (lstm.weight_drop or lstm.input_dropout or lstm.locked_dropout)):
        return False
    if compiling:
        return dispatch.compiled_prefers_torch(x.device, x.dtype, lstm.hidden_size, lstm.proj_size)
    if forced is None and (torch.jit.is_tracing() or torch.autograd.forward_ad._current_level >= 0):
        return True
    if lstm.recompute and torch.is_grad_enabled() and forced is None and x.device.type == "cpu":
        return False  # asked for to save memory, which torch's path would not
    if forced is not None:
        return forced == "torch"
    x = x if batch_sizes is not None else lstm._time_first(x)
    w_hr = weights[-1] if lstm.proj_size else None
    save = int(torch.is_grad_enabled())
    return dispatch.prefers_torch(
        spec_of(x, None, weights[0], weights[1], w_hr, hx[0][0], batch_sizes, None, False, save)
    )


def fx_node(lstm: LSTM, input: fx.Proxy, hx: object, *options: object) -> fx.Proxy | None:
    """One node for the whole module, as torch.fx makes for the modules of torch.nn; None where it is traced itself."""
    path = input.tracer.path_of_module(lstm)
    given = dict(zip(("reset", "return_cell_states", "return_gates"), options, strict=True))
    kwargs = {name: value for name, value in given.items() if value is not None}
    args = (input,) if hx is None else (input, hx)
    return input.tracer.create_proxy("call_module", path, args, kwargs) if path else None


def have_own_functions(weights: list[Tensor]) -> bool:
    """Whether a weight is of a class that answers torch's functions itself: it is given nn.LSTM's own, which it may know.

    torch.nn.utils' per-sample gradients ("expanded weights") are; they know no other way to use a weight, or to ask for
    its size.
    """
    if torch.compiler.is_compiling():
        return False
    return any(type(w) not in _USUAL and _has_own_functions(type(w)) for w in weights)


_USUAL = (Tensor, torch.nn.Parameter, type(None))


def _has_own_functions(kind: type[Tensor]) -> bool:
    function = kind.__torch_function__
    inherited = getattr(function, "__func__", None) is Tensor.__torch_function__.__func__
    return not inherited and function is not torch._C._disabled_torch_function_impl


def is_state(hx: object) -> bool:
    """Whether it is a pair of tensors."""
    return isinstance(hx, (tuple, list)) and len(hx) == 2 and all(isinstance(v, Tensor) for v in hx)


def check_weights(lstm: LSTM, weights: list[Tensor]) -> None:
    """Raise RuntimeError where a weight has been given a size that the module's sizes do not imply.

    nn.LSTM does not ask, and may read memory behind a small one.
    """
    if torch.jit.is_tracing():
        return  # sizes are tensors there
    directions, P = 2 if lstm.bidirectional else 1, lstm.proj_size or lstm.hidden_size
    each, G = 2 + 2 * lstm.bias + bool(lstm.proj_size), 4 * lstm.hidden_size
    tail = [(G,), (G,)] * bool(lstm.bias) + [(P, lstm.hidden_size)] * bool(lstm.proj_size)
    for k, weight in enumerate(weights):
        width = lstm.input_size if k < each * directions else P * directions
        expected = ((G, width), (G, P), *tail)[k % each]
        if weight is not None and weight.shape != expected:
            name = lstm._flat_weights_names[k]
            raise RuntimeError(f"{name} has shape {list(weight.shape)}, expected {list(expected)}")


def reset_mask(reset: Tensor | None, shape: torch.Size) -> Tensor | None:
    """The reset mask as given; raises where its shape or type is wrong."""
    if reset is not None and (reset.shape != shape or reset.dtype != torch.bool):
        raise RuntimeError(
            f"reset is {reset.dtype} with shape {list(reset.shape)}, expected torch.bool with shape {list(shape)}: "
            "the input's, without the last dimension"
        )
    return reset


def _op_takes(lstm: LSTM, x: Tensor, batch_sizes: Tensor | None, hx: State, weights: list[Tensor]) -> bool:
    """Whether types, devices and sizes are what the op takes. Where not, torch's own LSTM raises, or runs it."""
    dtype, device = x.dtype, x.device
    if dtype not in TYPES or not is_state(hx):
        return False
    if hx[1].dtype not in (dtype, cell_type(dtype)) or hx[0].dtype != dtype:
        return False
    if any(w is None or w.dtype != dtype for w in weights) or any(v.device != device for v in (*weights, *hx)):
        return False
    if any(v.layout is not torch.strided for v in (x, *hx)):
        return False
    if batch_sizes is None:
        return x.shape[1 if lstm.batch_first else 0] != 0
    n, P = lstm.num_layers * (2 if lstm.bidirectional else 1), lstm.proj_size or lstm.hidden_size
    sizes = [(n, *hx[0].shape[1:2], size) for size in (P, lstm.hidden_size)]
    return x.dim() == 2 and x.shape[1] == lstm.input_size and [hx[0].shape, hx[1].shape] == sizes
