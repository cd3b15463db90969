"""TokenLSTM: ids in, hidden states out. The first layer reads a row of a table where others multiply.

A one-hot or embedded id needs no input product: `table = E W_ihᵀ + b` (V, 4H) holds what the first layer's gates get
for every id, and the kernel gathers its row. Arithmetic, parameters and results are those of nn.Embedding and nn.LSTM.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM
from torch.nn.utils.rnn import PackedSequence

from fastlstm import calls, direct, dispatch, layers
from fastlstm.backends.common import spec_of
from fastlstm.backends.device import own_types
from fastlstm.direct import Order
from fastlstm.layers import Rows, State
from fastlstm.tables import table


class TokenLSTM(nn.Module):
    """nn.Embedding (or one-hot input) and nn.LSTM in one, without an input product.

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
        from fastlstm.nn import LSTM

        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        kind = {"device": device, "dtype": dtype}
        self.embedding = None if embedding_dim is None else nn.Embedding(num_embeddings, embedding_dim, **kind)
        width = num_embeddings if embedding_dim is None else embedding_dim
        options = (hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        self.lstm = LSTM(width, *options, **kind)

    @property
    def hidden_size(self) -> int:
        return self.lstm.hidden_size

    @property
    def num_layers(self) -> int:
        return self.lstm.num_layers

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, one-hot" if self.embedding_dim is None else f"{self.num_embeddings}"

    def tables(self, weights: list[Tensor]) -> list[Tensor]:
        """One (V, 4H) table a direction: every id's share of the first layer's gates, bias included."""
        lstm, made = self.lstm, []
        embedding = None if self.embedding is None else self.embedding.weight
        each = 2 + 2 * lstm.bias + bool(lstm.proj_size)
        for d in range(2 if lstm.bidirectional else 1):
            w, _, *rest = weights[d * each : (d + 1) * each]
            made.append(table(embedding, w, rest[0] + rest[1] if lstm.bias else None))
        return made

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

        input: (T, B) int64 ids, (B, T) with batch_first, (T,), or a PackedSequence of ids; hx: (h0, c0) as in LSTM;
        reset: bool, shaped as the ids, true where a sequence begins anew, as in LSTM.
        Returns output and (h_n, c_n) as LSTM does; then, where asked for, all cell states and all gates as LSTM does.
        Raises IndexError for an id outside 0 … V - 1 on the CPU. The CUDA kernels make NaN of what depends on it, and the
        next call (or `fastlstm.check()`) raises.
        """
        packed = isinstance(input, PackedSequence)
        ids = input.data if packed else input
        if ids.dtype != torch.int64:
            raise TypeError(f"TokenLSTM: ids are {ids.dtype}, expected torch.int64; use ids.long()")
        if not packed and ids.dim() not in (1, 2):
            raise ValueError(f"TokenLSTM: Expected ids to be 1D or 2D, got {ids.dim()}D instead")
        extra = reset is not None or return_cell_states or return_gates
        found = None if extra or torch.compiler.is_compiling() else self._directly(input, hx)
        if found is not None:
            return found
        if self._takes_torch(ids, input.batch_sizes if packed else None):
            return self._vectors_through(input, hx, reset, return_cell_states, return_gates)
        run = self._packed if packed else self._dense
        return run(input, hx, reset, return_cell_states, return_gates)

    def _directly(self, input: Tensor | PackedSequence, hx: State | None) -> tuple | None:
        """What forward returns, by the direct way; None where that does not apply."""
        lstm = self.lstm
        if type(lstm) is TORCH_LSTM:
            return None
        if isinstance(input, PackedSequence):
            found = direct.run_tokens(self, input.data, Order(input.batch_sizes, input.sorted_indices), hx)
            if found is None:
                return None
            return PackedSequence(found[0], *input[1:]), lstm.permute_hidden(found[1:], input.unsorted_indices)
        found = direct.run_tokens(self, lstm._time_first(input), Order(), hx) if input.dim() == 2 else None
        return None if found is None else (lstm._time_first(found[0]), found[1:])

    def _dense(self, ids: Tensor, hx: State | None, reset: Tensor | None, cells: bool, gates: bool) -> tuple:
        lstm, batched = self.lstm, ids.dim() == 2
        batch_dim = 0 if lstm.batch_first else 1
        mask = calls.reset_mask(reset, ids.shape)
        if mask is not None:
            mask = lstm._time_first(mask if batched else mask.unsqueeze(batch_dim))
        ids = ids if batched else ids.unsqueeze(batch_dim)
        steps = lstm._time_first(ids)
        if steps.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        found = self._run(Rows(steps), hx, steps.shape[1], batched, mask, cells, gates).shaped(lstm._time_first)
        return (found if batched else found.without_batch(batch_dim)).as_returned(cells, gates)

    def _packed(
        self,
        input: PackedSequence,
        hx: State | None,
        reset: Tensor | PackedSequence | None,
        cells: bool,
        gates: bool,
    ) -> tuple:
        lstm = self.lstm
        mask = calls.reset_mask(reset.data if isinstance(reset, PackedSequence) else reset, input.data.shape)
        hx = None if hx is None else lstm.permute_hidden(hx, input.sorted_indices)
        rows = Rows.of(input.data, input.batch_sizes)
        found = self._run(rows, hx, int(input.batch_sizes[0]), True, mask, cells, gates)
        h_n, c_n = lstm.permute_hidden((found.h_n, found.c_n), input.unsorted_indices)
        found = found._replace(h_n=h_n, c_n=c_n).shaped(lambda v: PackedSequence(v, *input[1:]))
        return found.as_returned(cells, gates)

    def _run(
        self, rows: Rows, hx: State | None, B: int, batched: bool, reset: Tensor | None, cells: bool, gates: bool
    ) -> layers.Results:
        lstm, weights = self.lstm, self.lstm._weights()
        hx = lstm._state(weights[1], hx, B, batched)
        n, P = lstm.num_layers * (2 if lstm.bidirectional else 1), lstm.proj_size or lstm.hidden_size
        lstm.check_hidden_size(hx[0], (n, B, P), "Expected hidden[0] size {}, got {}")
        lstm.check_hidden_size(hx[1], (n, B, lstm.hidden_size), "Expected hidden[1] size {}, got {}")
        _, hx, weights = calls.autocast(weights[1], hx, weights, packed=rows.batch_sizes is not None)
        with own_types(weights[1]):
            tables = self.tables(weights)
            return layers.run(lstm, rows, hx, weights, tables=tables, reset=reset, cells=cells, gates=gates)

    def _takes_torch(self, ids: Tensor, batch_sizes: Tensor | None) -> bool:
        """Whether torch's own LSTM runs, on vectors: after `restore`, when asked for, or on an unverified GPU."""
        if type(self.lstm) is TORCH_LSTM:
            return True
        if torch.compiler.is_compiling():
            w = self.lstm._weights()[0]
            kind = calls.autocast_type(w, batch_sizes is not None)
            return dispatch.compiled_prefers_torch(ids.device, kind, self.hidden_size, self.lstm.proj_size)
        if torch.jit.is_tracing() and dispatch.forced() is None:
            return True
        w_ih, w_hh, *_ = self.lstm._weights()
        like = w_ih.new_empty(0, self.num_embeddings)  # the table's first dimension is V
        like_h0 = w_hh.new_empty(int(batch_sizes[0]) if batch_sizes is not None else ids.shape[-1], 0)
        save = int(torch.is_grad_enabled())
        if ids.dim() == 1 and batch_sizes is None:
            ids = ids[:, None]
        spec = spec_of(None, ids, like.t(), w_hh, None, like_h0, batch_sizes, None, False, save)
        return dispatch.prefers_torch(replace(spec, dtype=calls.autocast_type(w_hh, spec.packed)))

    def _vectors_through(
        self,
        input: Tensor | PackedSequence,
        hx: State | None,
        reset: Tensor | PackedSequence | None,
        cells: bool,
        gates: bool,
    ):
        """The same through `self.lstm`, on vectors."""
        if reset is None and not (cells or gates):
            return self.lstm(self._vectors(input), hx)
        if type(self.lstm) is TORCH_LSTM:
            lacks = "takes no reset mask" if reset is not None else "returns no cell states or gates"
            raise RuntimeError(f"torch.nn.LSTM {lacks}; call fastlstm.replace(model) first")
        return self.lstm(self._vectors(input), hx, reset=reset, return_cell_states=cells, return_gates=gates)

    def _vectors(self, input: Tensor | PackedSequence) -> Tensor | PackedSequence:
        """The input as vectors, for torch's own path."""
        if isinstance(input, PackedSequence):
            return PackedSequence(self._vectors(input.data), *input[1:])
        if self.embedding is not None:
            return self.embedding(input)
        return F.one_hot(input, self.num_embeddings).to(self.lstm.weight_hh_l0.dtype)
