"""`Int8LSTM.stream(batch_size)`: step by step inference with int8 weights, the state kept between steps in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import native
from fastlstm.modules.stream import Stream, check_options
from fastlstm.ops import int8
from fastlstm.ops.int8 import Int8Weights, Matrix
from fastlstm.ops.reference import activate


class Int8Stream(Stream):
    """The layers of an Int8LSTM and their state, one step at a time; made by `Int8LSTM.stream`.

    Its methods are those of a Stream. lstm: an Int8LSTM. Later changes of the module's weights do not show: make a new stream.
    """

    def __init__(self, lstm: nn.Module, batch_size: int) -> None:
        check_options(lstm, batch_size)
        weights = lstm.checked_weights()
        self._dtype, self._device = torch.int8, weights[0].w_ih.q.device
        self._sizes = (batch_size, lstm.hidden_size, lstm.proj_size or lstm.hidden_size)
        self._input_size, self._side = lstm.input_size, 0
        packed = lstm.packed_layers()
        self._native = packed is not None
        with torch.inference_mode(False), torch.no_grad():
            self._step_layers = packed or []
            self._layers = [] if packed else [_copied(own) for own in weights]
            self._make_state(lstm.num_layers)

    def _step(self, x: Tensor) -> Tensor:
        return self._native_step(native.load().int8_step, x)

    def _plain_step(self, x: Tensor) -> Tensor:
        """The same in torch operations, where the native module does not run."""
        _, H, P = self._sizes
        for k, own in enumerate(self._layers):
            z = int8.product(self._h[self._side, k, :, :P], own.w_hh) + int8.input_gates(x, own)
            i, f, g, o = activate(z)
            c = f * self._c[k, :, :H] + i * g
            x = o * torch.tanh(c)
            x = x if own.w_hr is None else int8.product(x, own.w_hr)
            self._c[k, :, :H], self._h[1 - self._side, k, :, :P] = c, x
        return x.clone()


def _copied(own: Int8Weights) -> Int8Weights:
    def copied(matrix: Matrix | None) -> Matrix | None:
        return None if matrix is None else Matrix(matrix.q.clone(), matrix.scale.clone())

    bias = None if own.bias is None else own.bias.clone()
    return Int8Weights(copied(own.w_ih), copied(own.w_hh), bias, copied(own.w_hr))


dynamo_skip(__name__)
