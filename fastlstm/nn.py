"""fastlstm.LSTM in the place of torch.nn.LSTM, and TokenLSTM for ids.

LSTM subclasses torch.nn.RNNBase: the same parameters in the same order with the same initial draws. Layers and
directions are plain Python around the op of `fastlstm.ops`. Source of the method: Hochreiter and Schmidhuber 1997;
projection: Sak et al. 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm import dispatch
from fastlstm.backends.common import spec_of
from fastlstm.layers import Rows, direction, quick_stack, unpack_state

State = tuple[Tensor, Tensor]


class LSTM(nn.RNNBase):
    """Multi-layer LSTM with the arguments, parameters and results of torch.nn.LSTM.

    input_size: I; hidden_size: H; num_layers; bias; batch_first; dropout between layers (0 to 1); bidirectional;
    proj_size: P < H, 0 for none; device; dtype. Raises what torch.nn.LSTM raises.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Return the (layers x directions, B, H) that c0 must have."""
        B = int(batch_sizes[0]) if batch_sizes is not None else input.size(0 if self.batch_first else 1)
        return self.num_layers * (2 if self.bidirectional else 1), B, self.hidden_size

    def check_forward_args(self, input: Tensor, hidden: State, batch_sizes: Tensor | None) -> None:
        """Raise RuntimeError where the sizes of input or state do not fit."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def permute_hidden(self, hx: State, permutation: Tensor | None) -> State:
        """Return the state with its batch dimension reordered."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

    def forward(self, input, hx: State | None = None):
        """Run the layers.

        input: (T, B, I), (B, T, I) with batch_first, (T, I), or a PackedSequence; hx: (h0, c0), each
        (layers x directions, B, ·) or without B for unbatched input, zero when None.
        Returns output, with H or P features a direction, and (h_n, c_n).
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        hx = self._state_of(x, hx, batched)
        self.check_forward_args(x, hx, None)
        x, hx = self._types(x, hx)
        if self._torch_path(x, hx, None):
            out, h_n, c_n = torch._VF.lstm(
                x, hx, self._flat_weights, self.bias, self.num_layers, self.dropout, self.training,
                self.bidirectional, self.batch_first,
            )  # fmt: skip
            dispatch.note_plan("torch: its own LSTM, the whole module")
        else:
            steps = x.transpose(0, 1) if self.batch_first else x
            out, (h_n, c_n) = self._layers(Rows(steps), None, hx)
            out = out.transpose(0, 1) if self.batch_first else out
        if not batched:
            out, h_n, c_n = out.squeeze(0 if self.batch_first else 1), h_n.squeeze(1), c_n.squeeze(1)
        return out, (h_n, c_n)

    def _forward_packed(self, input: PackedSequence, hx: State | None):
        x, batch_sizes, order, back = input
        hx = self._packed_state(x, hx, batch_sizes, order)
        self.check_forward_args(x, hx, batch_sizes)
        x, hx = self._types(x, hx)
        if self._torch_path(x, hx, batch_sizes):
            out, h_n, c_n = torch._VF.lstm(
                x, batch_sizes, hx, self._flat_weights, self.bias, self.num_layers, self.dropout, self.training,
                self.bidirectional,
            )  # fmt: skip
            dispatch.note_plan("torch: its own LSTM, the whole module")
        else:
            out, (h_n, c_n) = self._layers(Rows(x, batch_sizes), None, hx)
        return PackedSequence(out, batch_sizes, order, back), self.permute_hidden((h_n, c_n), back)

    def _zero_state(self, like: Tensor, B: int) -> State:
        n, P = self.num_layers * (2 if self.bidirectional else 1), self.proj_size or self.hidden_size
        return like.new_zeros(n, B, P), like.new_zeros(n, B, self.hidden_size)

    def _state_of(self, x: Tensor, hx: State | None, batched: bool) -> State:
        if hx is None:
            return self._zero_state(self._like(x), x.size(0 if self.batch_first else 1))
        if batched and (hx[0].dim() != 3 or hx[1].dim() != 3):
            raise RuntimeError(
                f"For batched 3-D input, hx and cx should also be 3-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        if not batched and (hx[0].dim() != 2 or hx[1].dim() != 2):
            raise RuntimeError(
                f"For unbatched 2-D input, hx and cx should also be 2-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        return hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))

    def _like(self, x: Tensor) -> Tensor:
        return x if x.is_floating_point() else self.weight_hh_l0

    def _packed_state(self, x: Tensor, hx: State | None, batch_sizes: Tensor, order: Tensor | None) -> State:
        if hx is None:
            return self._zero_state(self._like(x), int(batch_sizes[0]))
        return self.permute_hidden(hx, order)

    def _types(self, x: Tensor, hx: State) -> tuple[Tensor, State]:
        """Autocast as torch's op does it, then refuse mixed types."""
        device = x.device.type
        if torch.is_autocast_enabled(device) and x.dtype in (torch.float32, torch.bfloat16, torch.float16):
            dtype = torch.get_autocast_dtype(device)
            return x.to(dtype), (hx[0].to(dtype), hx[1].to(dtype))
        return x, hx

    def _torch_path(self, x: Tensor, hx: State, batch_sizes: Tensor | None) -> bool:
        w = self._flat_weights[1]
        spec = spec_of(x if batch_sizes is not None or not self.batch_first else x.transpose(0, 1), None,
                       self._flat_weights[0], w, None, hx[0][0], batch_sizes, None, False, 1)  # fmt: skip
        return dispatch.prefers_torch(spec)

    def _layers(self, rows: Rows, tables: list[Tensor] | None, hx: State) -> tuple[Tensor, State]:
        """All layers and directions; `tables`: one (V, 4H) table a direction when rows are ids."""
        quick = quick_stack(self, rows, hx) if tables is None else None
        if quick is not None:
            return quick
        directions = 2 if self.bidirectional else 1
        h0, c0 = unpack_state(hx)
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            outs = []
            for d in range(directions):
                k = layer * directions + d
                table = tables[d] if tables is not None and layer == 0 else None
                h, h_last, c_last = direction(self, k, rows, table, h0[k], c0[k], reverse=d == 1)
                outs.append(h)
                h_n.append(h_last)
                c_n.append(c_last)
            out = outs[0] if directions == 1 else torch.cat(outs, -1)
            if self.dropout and self.training and layer < self.num_layers - 1:
                out = nn.functional.dropout(out, self.dropout, training=True)
            rows = rows.with_data(out)
        return out, (torch.stack(h_n), torch.stack(c_n).to(out.dtype))


class TokenLSTM(nn.Module):
    """Ids in, hidden states out: nn.Embedding (or one-hot input) and nn.LSTM in one, without an input product.

    num_embeddings: V; embedding_dim: width of the embedding, None for one-hot input (W_ih is then (4H, V)); the rest as
    in LSTM. state_dict keys: embedding.weight (if any) and lstm.*, as an nn.Embedding and an nn.LSTM have them.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int | None = None,
        hidden_size: int = 128,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        factory = {"device": device, "dtype": dtype}
        self.embedding = None if embedding_dim is None else nn.Embedding(num_embeddings, embedding_dim, **factory)
        self.lstm = LSTM(
            num_embeddings if embedding_dim is None else embedding_dim,
            hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, **factory,
        )  # fmt: skip

    @property
    def hidden_size(self) -> int:
        return self.lstm.hidden_size

    @property
    def num_layers(self) -> int:
        return self.lstm.num_layers

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, one-hot" if self.embedding_dim is None else f"{self.num_embeddings}"

    def tables(self) -> list[Tensor]:
        """Return one (V, 4H) table a direction: every id's input side of the gates, bias included."""
        made = []
        for suffix in ("", "_reverse") if self.lstm.bidirectional else ("",):
            w = getattr(self.lstm, f"weight_ih_l0{suffix}")
            bias = None
            if self.lstm.bias:
                bias = getattr(self.lstm, f"bias_ih_l0{suffix}") + getattr(self.lstm, f"bias_hh_l0{suffix}")
            if self.embedding is None:
                made.append(w.t() if bias is None else w.t() + bias)
            else:
                made.append(nn.functional.linear(self.embedding.weight, w, bias))
        return made

    def forward(self, input, hx: State | None = None):
        """Run the layers.

        input: (T, B) int64 ids, (B, T) with batch_first, (T,), or a PackedSequence of ids; hx: (h0, c0) as in LSTM.
        Returns output and (h_n, c_n) as LSTM does. Raises IndexError for an id outside 0 … V - 1 on the CPU.
        """
        lstm, packed = self.lstm, isinstance(input, PackedSequence)
        ids = input.data if packed else input
        if ids.dtype != torch.int64:
            raise TypeError(f"TokenLSTM: ids are {ids.dtype}, expected torch.int64; use ids.long()")
        if not packed and ids.dim() not in (1, 2):
            raise ValueError(f"TokenLSTM: Expected ids to be 1D or 2D, got {ids.dim()}D instead")
        if dispatch.forced() == "torch":
            return lstm(self._dense(input), hx)
        if packed:
            state = lstm._packed_state(lstm.weight_hh_l0, hx, input.batch_sizes, input.sorted_indices)
            self._check_state(state, int(input.batch_sizes[0]))
            out, state = lstm._layers(Rows(ids, input.batch_sizes), self.tables(), state)
            out = PackedSequence(out, *input[1:])
            return out, lstm.permute_hidden(state, input.unsorted_indices)
        batched = ids.dim() == 2
        steps = ids if batched else ids.unsqueeze(1)
        steps = steps.t() if batched and lstm.batch_first else steps
        state = lstm._state_of(lstm.weight_hh_l0.new_empty(0).expand(steps.shape[1], steps.shape[1], 0), hx, batched)
        self._check_state(state, steps.shape[1])
        out, (h_n, c_n) = lstm._layers(Rows(steps), self.tables(), state)
        if not batched:
            return out.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return out.transpose(0, 1) if lstm.batch_first else out, (h_n, c_n)

    def _dense(self, input):
        """The same input as vectors, for torch's own path."""

        def vectors(ids: Tensor) -> Tensor:
            if self.embedding is not None:
                return self.embedding(ids)
            return nn.functional.one_hot(ids, self.num_embeddings).to(self.lstm.weight_hh_l0.dtype)

        return PackedSequence(vectors(input.data), *input[1:]) if isinstance(input, PackedSequence) else vectors(input)

    def _check_state(self, hx: State, B: int) -> None:
        lstm = self.lstm
        n, P = lstm.num_layers * (2 if lstm.bidirectional else 1), lstm.proj_size or lstm.hidden_size
        lstm.check_hidden_size(hx[0], (n, B, P), "Expected hidden[0] size {}, got {}")
        lstm.check_hidden_size(hx[1], (n, B, lstm.hidden_size), "Expected hidden[1] size {}, got {}")
