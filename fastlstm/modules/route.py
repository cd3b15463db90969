"""The one route of a call: which of four it takes, and what runs it there.

fused CPU   all layers in one autograd Function over the native kernels (backends/cpu/function.py)
stack op    in a graph of torch.compile on the CPU: all layers in one node, over the same kernels (modules/stack_op.py)
op          one call of the op a layer and direction, through torch's dispatcher (ops/lstm.py); dispatch chooses a backend
torch       torch's own LSTM, the whole module
"""

from __future__ import annotations

import torch

from fastlstm import dispatch
from fastlstm._torch_compat import dynamo_skip, flop_registries, forward_gradients_are_on, is_exporting_to_onnx
from fastlstm.backends import native
from fastlstm.backends.cpu import backend as cpu
from fastlstm.backends.cpu import function
from fastlstm.modules.call import Call, Results, is_state
from fastlstm.modules.layers import run_layers, run_torch
from fastlstm.modules.stack_op import stack_forward, through_ops
from fastlstm.ops import validation
from fastlstm.ops.arguments import SAVE_ALL, SAVE_CELLS, SAVE_NOTHING, Spec, make_spec
from fastlstm.ops.reference import cell_type

FUSED_CPU, STACK_OP, OP, TORCH = "fused CPU", "stack op", "op", "torch"


def route(call: Call) -> str:
    """Return the route of a call: FUSED_CPU, STACK_OP, OP or TORCH.

    What torch's own LSTM cannot do (resets, cell states, gates, masks that it does not draw) goes to the op, where a
    requested "torch" raises; what the op cannot take goes to torch, which runs it or says what is wrong.
    """
    if not call.fits and torch.compiler.is_compiling():
        return _compiled_route(call)
    requested = dispatch.requested_backend()
    if requested in (None, "cpu") and _fuses(call) and not (requested is None and _torch_is_faster(call)):
        return FUSED_CPU
    if call.own_functions:  # torch.nn.utils' per-sample gradients are: they know nn.LSTM's own functions only
        return TORCH
    if not _op_takes(call):
        if call.tokens is not None:  # the op's checks name the argument; torch's would speak of vectors
            return OP
        return TORCH if call.T == 0 or requested in (None, "torch") else OP
    if call.extra or call.masks.unknown_to_torch:
        return OP
    if requested is not None:
        return TORCH if requested == "torch" else OP
    if forward_gradients_are_on():
        return OP  # which runs the definition then; oneDNN's and cuDNN's LSTM have no forward-mode gradients
    if torch.jit.is_tracing():
        return TORCH
    if call.rows.device.type == "cpu" and (flop_registries() or (call.recompute and torch.is_grad_enabled())):
        return OP  # a FLOP counter knows no formula for oneDNN's LSTM; recompute is to save memory
    return TORCH if dispatch.prefers_torch(first_spec(call)) else OP


def _compiled_route(call: Call) -> str:
    if not _op_takes(call):
        return TORCH
    extra, to_onnx = call.extra or call.masks.unknown_to_torch, is_exporting_to_onnx()
    if extra and to_onnx:
        raise RuntimeError(
            "ONNX has no LSTM with reset, return_cell_states, return_gates or masks in training; turn them off before "
            "torch.onnx.export (fastlstm.restore(model) names those of a module)"
        )
    if extra or to_onnx:
        return TORCH if to_onnx else OP  # torch's own LSTM becomes ONNX's, and the op has no counterpart there
    dtype, stack = call.weights[1].dtype, call.stack
    prefers = dispatch.compiled_prefers_torch(call.rows.device, dtype, stack.hidden_size, stack.proj_size)
    if prefers:
        return TORCH
    one_node = not call.needs_layers and dispatch.compiled_fuses(call.rows.device, dtype)
    return STACK_OP if one_node else OP


def first_spec(call: Call) -> Spec:
    """The op's call of the first layer, forward direction, as a backend is asked about it."""
    packed, tokens, w_hh = call.batch_sizes is not None, call.tokens is not None, call.weights[1]
    T, B = call.T, call.B
    N = call.rows.shape[0] if packed else T * B
    I, V = (0, call.tokens.V) if tokens else (call.rows.shape[-1], 0)
    save = SAVE_NOTHING
    if torch.is_grad_enabled():
        save = SAVE_CELLS if call.recompute else SAVE_ALL
    sizes = (T, B, N, I, V, call.stack.hidden_size, call.stack.P)
    flags = (packed, tokens, bool(call.stack.proj_size), False, call.reset is not None)
    dtype = call.hx[0].dtype if call.fits else w_hh.dtype  # under autocast the fused route has float32 weights
    return make_spec(w_hh.device, dtype, *sizes, *flags, save)


def _op_takes(call: Call) -> bool:
    """Whether types, devices and sizes are what the op takes. Where not, torch's own LSTM raises, or runs it."""
    hx, weights = call.hx, call.weights
    if not is_state(hx):
        return False
    like = call.rows if call.tokens is None else weights[1]
    dtype, device = like.dtype, like.device
    if dtype not in validation.TYPES or hx[0].dtype != dtype or hx[1].dtype not in (dtype, cell_type(dtype)):
        return False
    if any(w is None or w.dtype != dtype for w in weights) or any(v.device != device for v in (*weights, *hx)):
        return False
    if any(v.layout is not torch.strided for v in (like, *hx)):
        return False
    if call.batch_sizes is None:
        return call.rows.shape[0] != 0
    stack = call.stack
    fits = call.tokens is not None or (call.rows.dim() == 2 and call.rows.shape[1] == stack.input_size)
    return fits and (hx[0].shape, hx[1].shape) == stack.state_shapes(*hx[0].shape[1:2])


def _fuses(call: Call) -> bool:
    """Whether the fused CPU route takes a call: it fits plainly, with nothing extra, nothing to drop or to compute again."""
    return call.fits and not call.extra and native.unavailable() is None and not call.needs_layers


def _torch_is_faster(call: Call) -> bool:
    """`dispatch.torch_is_faster`, asked only where it can be so."""
    if call.stack.hidden_size < 512 or call.tokens is not None or call.batch_sizes is not None:
        return False
    return dispatch.torch_is_faster(first_spec(call))


def run_fused(call: Call) -> Results:
    rows, tokens, (h0, c0) = call.rows.contiguous(), call.tokens, call.hx
    h0, c0 = h0.contiguous(), c0.contiguous()
    if tokens is not None and tokens.V == 0:
        validation.ids_in_range(rows, 0)
    batch_sizes = None if call.batch_sizes is None else call.batch_sizes.contiguous()
    V, embedding = (0, None) if tokens is None else tokens
    dtype, threads = h0.dtype, torch.get_num_threads()
    fused = function.FusedCall(call.stack, V, batch_sizes, call.T, call.B, dtype, threads, through_ops)
    dispatch.record_plan(cpu.describe(dtype))
    tensors = (rows, h0, c0, embedding, *call.weights)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors):
        out, h_n, c_n = function.FusedLSTM.apply(fused, *tensors)
    else:
        out, h_n, c_n = function.forward(fused, *tensors[:4], call.weights, keep=False)[:3]
    return Results(out, h_n, c_n, [], [])


def run_stack(call: Call) -> Results:
    """All layers and directions in one node of a compiled graph. A state of zeros is made inside it."""
    stack, (V, embedding) = call.stack, (0, None) if call.tokens is None else call.tokens
    h0, c0 = (None, None) if call.starts_at_zero and call.batch_sizes is None else call.hx
    sizes = (stack.layers, stack.directions == 2, stack.input_size, stack.hidden_size, stack.proj_size, stack.bias)
    out, h_n, c_n = stack_forward(call.rows, h0, c0, embedding, call.weights, call.batch_sizes, V, *sizes, False)
    return Results(out, h_n, c_n, [], [])


RUN = {FUSED_CPU: dynamo_skip(run_fused), STACK_OP: run_stack, OP: run_layers, TORCH: run_torch}  # what runs a call
dynamo_skip(_fuses)
