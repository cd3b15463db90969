"""Int8LSTM: an LSTM with int8 weights, for inference; `fastlstm.quantize` makes it of an LSTM.

The arithmetic is that of fastlstm/ops/int8.py. On the CPU the native kernels run it (fastlstm/backends/cpu/int8.py), with
weights packed at the first call and again where they were loaded or moved; elsewhere the definition itself runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm import dispatch
from fastlstm._torch_compat import describe_object, dynamo_skip, in_functorch, is_exporting_to_onnx, is_fake
from fastlstm.backends import native
from fastlstm.backends.cpu.int8 import PackedInt8
from fastlstm.dispatch import BackendError
from fastlstm.memory import check_whole
from fastlstm.modules import checks
from fastlstm.modules.call import Results
from fastlstm.modules.checks import State, Tokens
from fastlstm.modules.int8_call import int8_call
from fastlstm.modules.int8_stream import Int8Stream
from fastlstm.ops import int8
from fastlstm.ops.cell import Stack
from fastlstm.ops.int8 import WIDEST, Int8Weights, Matrix
from fastlstm.ops.validation import ids_in_range

_warming: ContextVar[bool] = ContextVar("fastlstm_int8_warming", default=False)


@contextmanager
def while_warming_up() -> Iterator[None]:
    """Within it, an Int8LSTM runs whatever backend is forced, in training too: `warm_up` is about the other modules."""
    token = _warming.set(True)
    try:
        yield
    finally:
        _warming.reset(token)


class Int8LSTM(nn.Module):
    """Multi-layer LSTM with int8 weights and the results of torch.nn.LSTM, float32 in and out, without gradients.

    state_dict keys, for each layer k and, with the suffix `_reverse`, each backward direction: `weight_ih_lk`,
    `weight_hh_lk` and with projection `weight_hr_lk`, int8 in nn.LSTM's shapes; `weight_ih_lk_scale` and so on, float32, one
    number a row (weight ≈ int8 · scale); `bias_lk` (4H,) float32, the sum of nn.LSTM's two. Memory: a quarter of float32, and
    as much again for the packed copy that the kernels read.

    Args:
        input_size: I. hidden_size: H. num_layers: L. bias, batch_first, bidirectional: as in nn.LSTM.
        proj_size: P < H, 0 for no projection. device: of the weights, which are zero until they are loaded.

    Raises:
        ValueError: where a size is not one.
    """

    dropout, mode = 0.0, "LSTM"  # which code written for nn.LSTM reads

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        *,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional, self.proj_size = bias, batch_first, bidirectional, proj_size
        self._check_sizes()
        with torch.inference_mode(False):  # tensors made in inference mode do not say when they change
            for name, shape, dtype in self._layout():
                self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))
        self._packed = PackedInt8()

    def _check_sizes(self) -> None:
        sizes = {"input_size": self.input_size, "hidden_size": self.hidden_size, "num_layers": self.num_layers}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= WIDEST:
                raise ValueError(
                    f"{name} is {value!r}, expected an int from 1 to {WIDEST}: sums of products must fit 32 bits"
                )
        if not 0 <= self.proj_size < self.hidden_size:
            raise ValueError(f"proj_size is {self.proj_size}, expected 0 or less than hidden_size, {self.hidden_size}")

    def _layout(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and type of every buffer."""
        stack, layout = Stack.of(self), []
        for k, suffix in enumerate(self._suffixes()):
            first = k * stack.per_direction
            w_ih, w_hh, *rest = stack.weight_shapes[first : first + stack.per_direction]
            matrices = {"weight_ih": w_ih, "weight_hh": w_hh} | ({"weight_hr": rest[-1]} if self.proj_size else {})
            for name, shape in matrices.items():
                layout.append((f"{name}_{suffix}", shape, torch.int8))
                layout.append((f"{name}_{suffix}_scale", shape[:1], torch.float32))
            if self.bias:
                layout.append((f"bias_{suffix}", w_ih[:1], torch.float32))
        return layout

    def _suffixes(self) -> list[str]:
        """The end of the names of each layer and direction."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{k}{direction}" for k in range(self.num_layers) for direction in directions]

    def weights(self) -> list[Int8Weights]:
        """The weights as they are now, of each layer and direction."""
        return [
            Int8Weights(
                self._matrix(f"weight_ih_{suffix}"),
                self._matrix(f"weight_hh_{suffix}"),
                getattr(self, f"bias_{suffix}") if self.bias else None,
                self._matrix(f"weight_hr_{suffix}") if self.proj_size else None,
            )
            for suffix in self._suffixes()
        ]

    def checked_weights(self) -> list[Int8Weights]:
        """`weights`; raises RuntimeError where one was given another type or size since it was made."""
        for name, shape, dtype in self._layout():
            value = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise RuntimeError(
                    f"{name} is {describe_object(value)}, expected {dtype} with shape {list(shape)}; .half() and .double() do "
                    "not apply to int8 modules: quantise the float32 model again"
                )
        check_whole(*((name, getattr(self, name)) for name, _, _ in self._layout()))
        return self.weights()

    def _matrix(self, name: str) -> Matrix:
        return Matrix(getattr(self, name), getattr(self, f"{name}_scale"))

    @torch.no_grad()
    def set_weights(self, weights: list[Int8Weights]) -> None:
        """Copy the weights of each layer and direction into this module."""
        for suffix, own in zip(self._suffixes(), weights, strict=True):
            for name, matrix in (("weight_ih", own.w_ih), ("weight_hh", own.w_hh), ("weight_hr", own.w_hr)):
                if matrix is not None:
                    getattr(self, f"{name}_{suffix}").copy_(matrix.q)
                    getattr(self, f"{name}_{suffix}_scale").copy_(matrix.scale)
            if own.bias is not None:
                getattr(self, f"bias_{suffix}").copy_(own.bias)

    def flatten_parameters(self) -> None:
        """Nothing, as nn.LSTM's on a CPU."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        reset: Tensor | PackedSequence | None = None,
        return_cell_states: bool = False,
        return_gates: bool = False,
    ):
        """Run the layers.

        Args:
            input: float32 (T, B, I), (B, T, I) with batch_first, (T, I), or a PackedSequence.
            hx: (h0, c0), each (layers · directions, B, ·), without B for unbatched input; None: zero.
            reset, return_cell_states, return_gates: of fastlstm.LSTM; refused.

        Returns:
            output, with H or P features a direction, and (h_n, c_n), as nn.LSTM does. They carry no gradients.

        Raises:
            RuntimeError: in training mode where gradients are asked for, and where it is traced, exported or transformed;
            ValueError, TypeError: where arguments do not fit.
        """
        if reset is not None or return_cell_states or return_gates:
            raise ValueError("Int8LSTM takes no reset mask and returns no cell states or gates; use the float model")
        return self.run(input, hx, None)

    @dynamo_skip
    def run(self, input: Tensor | PackedSequence, hx: State | None, tokens: Tokens | None):
        """`forward`; with tokens, the input holds ids."""
        _refuse_tracing(self, input)
        self._refuse_training(input, hx, tokens)
        with torch.no_grad():
            call = int8_call(self, input, hx, tokens)
            packed = self._packed.of(self, *(tokens or ())) if self._why_not_native() is None else None
            run_layer = _definition(self, tokens) if packed is None else packed.run
            rows, last = call.rows, []
            for k in range(self.num_layers):
                outputs = []
                for d in range(call.stack.directions):
                    n = k * call.stack.directions + d
                    out, *state = run_layer(n, rows, call.hx[0][n], call.hx[1][n], call.batch_sizes, d == 1)
                    outputs.append(out)
                    last.append(state)
                rows = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            h_n, c_n = (torch.stack(states) for states in zip(*last, strict=True))
            return call.returned(Results(rows, h_n, c_n, [], []))

    def stream(self, batch_size: int = 1) -> Int8Stream:
        """Step by step inference: `s = lstm.stream(B); h = s.step(x)`, as with LSTM.stream."""
        return Int8Stream(self, batch_size)

    def packed_layers(self) -> list | None:
        """The native layers, packed at the first call and where weights have changed; None where the definition runs."""
        with torch.no_grad():
            return self._packed.layers(self) if self._why_not_native() is None else None

    def _why_not_native(self) -> str | None:
        """Why the definition runs a call, or None. Raises BackendError where a backend was asked for that cannot."""
        name, device = None if _warming.get() else dispatch.requested_backend(), self.weight_ih_l0.device
        if name in ("torch", "reference"):
            return f"'{name}' is forced"
        if name not in (None, "cpu"):
            raise BackendError(f"backend '{name}' was asked for and has no int8 kernels; use 'cpu' or 'reference'")
        reason = (
            native.unavailable() if device.type == "cpu" else f"the weights are on {device}, and the kernels on the CPU"
        )
        if name == "cpu" and reason is not None:
            raise BackendError(f"backend 'cpu' was asked for and cannot run an int8 LSTM: {reason}")
        return reason

    def describe(self) -> str:
        """What runs a call, for `fastlstm.explain`."""
        reason = self._why_not_native()
        if reason is None:
            return f"runs on cpu: int8, {native.load().int8_isa()}"
        return f"runs on reference: int8, in torch operations; {reason}"

    def _refuse_training(self, input: Tensor | PackedSequence, hx: State | None, tokens: Tokens | None) -> None:
        if not (self.training and torch.is_grad_enabled()) or _warming.get():
            return
        data, states = input.data if isinstance(input, PackedSequence) else input, hx if checks.is_state(hx) else ()
        if any(isinstance(v, Tensor) and v.requires_grad for v in (data, *states, tokens and tokens.embedding)):
            what = "an input" if tokens is None else "an embedding or a state"
            raise RuntimeError(
                f"Int8LSTM has no gradients, and the module is in training mode with {what} that requires them; call "
                "model.eval() for inference, or train the float model and quantise it again"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        errors: list[str] = args[-1]
        for name, _, dtype in self._layout():
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dtype != dtype:
                errors.append(
                    f"{prefix}{name} is {value.dtype}, expected {dtype}; a float state_dict is loaded into the float model, "
                    "which fastlstm.quantize then turns into int8"
                )
                state_dict = {**state_dict, prefix + name: getattr(self, name)}  # torch would round it to integers
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": PackedInt8()}  # packed again where it is first used

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        options = {"num_layers": 1, "bias": True, "batch_first": False, "bidirectional": False, "proj_size": 0}
        changed = [f"{name}={getattr(self, name)}" for name, usual in options.items() if getattr(self, name) != usual]
        return ", ".join([text, *changed])


def _refuse_tracing(lstm: Int8LSTM, input: Tensor | PackedSequence) -> None:
    """Raise RuntimeError under what records, exports or transforms a model instead of running it on numbers."""
    data = input.data if isinstance(input, PackedSequence) else input
    if torch.jit.is_tracing() or is_exporting_to_onnx():
        what = "be traced or exported (torch.jit.trace, torch.onnx.export)"
    elif in_functorch():
        what = "run inside torch.func (grad, vmap, jvp)"
    elif is_fake(data, lstm.weight_ih_l0):
        what = "run on fake tensors, which have no numbers (FakeTensorMode, torch.export)"
    else:
        return
    raise RuntimeError(f"Int8LSTM cannot {what}; call it on plain tensors, or use the float model there")


def _definition(lstm: Int8LSTM, tokens: Tokens | None):
    """Runs a layer by the definition."""
    weights = lstm.checked_weights()
    dispatch.record_plan("reference: int8, in torch operations")

    def run(n: int, rows: Tensor, h0: Tensor, c0: Tensor, batch_sizes: Tensor | None, reverse: bool):
        own = weights[n]
        if rows.dtype is torch.int64:
            ids_in_range(rows, tokens.V)
            x_gates = int8.token_gates(rows, *tokens, own)
        else:
            x_gates = int8.input_gates(rows.reshape(-1, rows.shape[-1]), own).reshape(*rows.shape[:-1], -1)
        return int8.layer(x_gates, own, h0, c0, batch_sizes, reverse)

    return run


dynamo_skip(__name__)
