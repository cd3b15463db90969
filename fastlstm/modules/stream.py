"""`lstm.stream(batch_size)`: step by step inference with weights packed once, the state kept between steps.

Weights are read once a step and that is all the work, so they are laid out in the order in which the kernel reads them
(csrc/cpu/lstm_step.h), and may be bfloat16: half the bytes, sums in float32. Dropout plays no part in inference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm._torch_compat import describe_object, dynamo_skip
from fastlstm.backends import native
from fastlstm.backends.packing import pack, padded
from fastlstm.memory import check_whole, empty, plain_check
from fastlstm.modules.checks import check_weights
from fastlstm.ops.cell import Stack

_STORED = (torch.float32, torch.bfloat16)


class Stream:
    """The layers of an LSTM and their state, one step at a time; made by `LSTM.stream`.

    lstm: not bidirectional; its weights are copied, so later changes do not show: make a new stream. batch_size: B;
    dtype: how weights are stored, torch.float32 or torch.bfloat16, the module's own type when None. Arithmetic and
    state are float32; with bfloat16 each weight is off by at most 2⁻⁸ of itself. Raises ValueError for what it cannot
    do.
    """

    def __init__(self, lstm: nn.RNNBase, batch_size: int, dtype: torch.dtype | None = None) -> None:
        weights = lstm._weights()
        dtype = dtype or weights[0].dtype
        _check(lstm, batch_size, dtype)
        self._dtype, self._device = dtype, weights[0].device
        self._sizes = (batch_size, lstm.hidden_size, lstm.proj_size or lstm.hidden_size)
        self._input_size, self._side = lstm.input_size, 0
        per_layer = len(weights) // lstm.num_layers
        layers = [weights[k : k + per_layer] for k in range(0, len(weights), per_layer)]
        self._native = self.device.type == "cpu" and native.unavailable() is None
        store = _packed if self._native else _plain
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # so that the state can be set in and outside of inference mode
            self._layers = [store(layer, lstm.bias, bool(lstm.proj_size), dtype) for layer in layers]
            self._make_state(lstm.num_layers)
        if self._native:
            self._step_layers = [
                native.load().StepLayer(start=bias, w=w, w_hr=w_hr, I=self._sizes[2] if k else lstm.input_size)
                for k, (w, bias, w_hr) in enumerate(self._layers)
            ]

    def _make_state(self, layers: int) -> None:
        """A state of zeros, as the kernel keeps it: two sides of h, rows padded to whole blocks."""
        B, H, P = self._sizes
        self._h = empty((2, layers, B, padded(P)), torch.float32, self.device).zero_()
        self._c = empty((layers, B, padded(H)), torch.float32, self.device).zero_()
        self._h_unprojected = empty((B, padded(H)), torch.float32, self.device)

    @property
    def batch_size(self) -> int:
        """B; another number of sequences takes another stream."""
        return self._sizes[0]

    @property
    def dtype(self) -> torch.dtype:
        """How weights are stored."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where weights, state and input are."""
        return self._device

    def step(self, x: Tensor) -> Tensor:
        """Take one step: x (B, I) in; the last layer's h out, (B, P), fresh, in the type of x. Gradients are not kept.

        Raises ValueError where x has another shape or device, or is not floating.
        """
        sizes = self._sizes[0], self._input_size
        if x.shape != sizes or x.device != self._device or not x.is_floating_point():
            expected = f"a floating tensor of shape {[self.batch_size, self._input_size]} on {self.device}"
            raise ValueError(f"x is {x.dtype} with shape {list(x.shape)} on {x.device}, expected {expected}")
        with torch.no_grad():
            values = x if self._native and x.dtype is torch.float32 and plain_check()(x) else _float32(x)
            out = self._step(values.contiguous()) if self._native else self._plain_step(values)
            self._side = 1 - self._side
            return out.to(x.dtype)

    def _step(self, x: Tensor) -> Tensor:
        return self._native_step(native.load().lstm_step, x, bfloat16=self.dtype is torch.bfloat16)

    def _native_step(self, step: Callable[..., None], x: Tensor, **options: object) -> Tensor:
        """A step by a native function, which takes `options` besides what all of them take."""
        B, H, P = self._sizes
        out = empty((B, P), torch.float32)
        step(
            **options,
            layers=self._step_layers,
            out=out,
            h=self._h,
            c=self._c,
            h_unprojected=self._h_unprojected,
            x=x,
            B=B,
            H=H,
            P=P,
            side=self._side,
            threads=torch.get_num_threads(),
        )
        return out

    def _plain_step(self, x: Tensor) -> Tensor:
        """The same in torch operations, where the native module does not run."""
        _, H, P = self._sizes
        for k, (w, bias, w_hr) in enumerate(self._layers):
            z = F.linear(torch.cat([x, self._h[self._side, k, :, :P]], 1), w.float(), bias)
            i, f, g, o = z.chunk(4, 1)
            c = torch.sigmoid(f) * self._c[k, :, :H] + torch.sigmoid(i) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(c)
            x = x if w_hr is None else F.linear(x, w_hr.float())
            self._c[k, :, :H], self._h[1 - self._side, k, :, :P] = c, x
        return x.clone()

    def __reduce_ex__(self, protocol: object) -> tuple:
        raise TypeError("a Stream is tied to its memory and cannot be copied or pickled; make another: lstm.stream(B)")

    def reset(self, rows: Tensor | None = None) -> None:
        """Make the state zero: of all sequences, or where `rows`, bool (B,), is true."""
        if rows is None:
            self._h.zero_()
            self._c.zero_()
            return
        if rows.shape != (self.batch_size,) or rows.dtype != torch.bool or rows.device != self._h.device:
            raise ValueError(
                f"rows is {describe_object(rows)}, expected bool with shape [{self.batch_size}] on {self._h.device}"
            )
        check_whole(("rows", rows))
        self._h[:, :, rows] = 0
        self._c[:, rows] = 0

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """A copy of (h, c), float32 (L, B, P) and (L, B, H), as nn.LSTM takes and returns them; may be assigned."""
        _, H, P = self._sizes
        return self._h[self._side, :, :, :P].clone(), self._c[:, :, :H].clone()

    @state.setter
    def state(self, hx: tuple[Tensor, Tensor]) -> None:
        _, H, P = self._sizes
        for name, value, like, width in (("h", hx[0], self._h[0], P), ("c", hx[1], self._c, H)):
            if value.shape != (*like.shape[:2], width):
                raise ValueError(f"{name} has shape {list(value.shape)}, expected {[*like.shape[:2], width]}")
        check_whole(("h", hx[0]), ("c", hx[1]))
        with torch.no_grad():
            self._h[self._side, :, :, :P], self._c[:, :, :H] = hx[0], hx[1]


def check_options(lstm: nn.Module, batch_size: int) -> None:
    """Raise ValueError where a module cannot be streamed, or not with this number of sequences."""
    if lstm.bidirectional:
        raise ValueError("a bidirectional LSTM cannot be streamed: its backward direction begins at the last step")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected a positive int")


def _check(lstm: nn.RNNBase, batch_size: int, dtype: torch.dtype) -> None:
    check_options(lstm, batch_size)
    check_weights(lstm, Stack.of(lstm), lstm._weights())
    check_whole(*zip(lstm._flat_weights_names, lstm._weights(), strict=True))
    if dtype not in _STORED:
        raise ValueError(f"dtype is {dtype}, expected torch.float32 or torch.bfloat16; pass one as stream(B, dtype)")


def _float32(x: Tensor) -> Tensor:
    """The numbers of an input of any type and class, in memory of their own."""
    check_whole(("x", x))  # before torch reads it
    return x.detach().to(torch.float32).contiguous().resolve_neg()


def _plain(weights: list[Tensor], bias: bool, projected: bool, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """A layer's (4H, I + P) weights, float32 bias (4H,) and W_hr (P, H) or None."""
    w_ih, w_hh, *rest = (w.detach() for w in weights)
    b = rest[0].float() + rest[1].float() if bias else w_hh.new_zeros(w_hh.shape[0], dtype=torch.float32)
    return torch.cat([w_ih, w_hh], 1).to(dtype), b, rest[-1].to(dtype, copy=True) if projected else None


def _packed(weights: list[Tensor], bias: bool, projected: bool, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """`_plain` in the blocks of the step engine."""
    w_ih, w_hh, *rest = (w.detach() for w in weights)
    b = rest[0].float() + rest[1].float() if bias else w_hh.new_zeros(w_hh.shape[0], dtype=torch.float32)
    w_hr = pack(rest[-1], dtype=dtype) if projected else None
    return pack(w_hh, w_ih, gates=4, dtype=dtype), pack(b[:, None], gates=4), w_hr


dynamo_skip(__name__)
