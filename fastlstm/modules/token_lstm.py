"""TokenLSTM: ids in, hidden states out. The first layer reads a row of a table where others multiply.

A one-hot or embedded id needs no input product: `table = E W_ihᵀ + b` (V, 4H) holds what the first layer's gates get
for every id, and the kernel gathers its row. Arithmetic, parameters and results are those of nn.Embedding and nn.LSTM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.rnn import LSTM as TORCH_LSTM
from torch.nn.utils.rnn import PackedSequence

from fastlstm.modules.call import State, Tokens, normalise
from fastlstm.modules.int8_lstm import Int8LSTM
from fastlstm.modules.layers import token_tables
from fastlstm.modules.lstm import LSTM
from fastlstm.modules.route import RUN, TORCH, route
from fastlstm.ops.cell import Stack


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
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        factory = {"device": device, "dtype": dtype}
        self.embedding = None if embedding_dim is None else nn.Embedding(num_embeddings, embedding_dim, **factory)
        width = num_embeddings if embedding_dim is None else embedding_dim
        options = (hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        self.lstm = LSTM(width, *options, **factory)

    @property
    def hidden_size(self) -> int:
        return self.lstm.hidden_size

    @property
    def num_layers(self) -> int:
        return self.lstm.num_layers

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, one-hot" if self.embedding_dim is None else f"{self.num_embeddings}"

    def tables(self, weights: list[Tensor]) -> list[Tensor]:
        """One (V, 4H) table a direction: every id's share of the first layer's gates, bias included. Not of an int8 model."""
        if isinstance(self.lstm, Int8LSTM):
            raise ValueError(
                "tables() is of float weights, and this TokenLSTM has int8 ones; call it on the float model"
            )
        stack = Stack.of(self.lstm, cached=not torch.compiler.is_compiling())
        return token_tables(stack, weights, self.tokens.embedding)

    @property
    def tokens(self) -> Tokens:
        """The number of ids and the embedding as it is now."""
        return Tokens(self.num_embeddings, None if self.embedding is None else self.embedding.weight)

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
            input: (T, B) int64 ids, (B, T) with batch_first, (T,), or a PackedSequence of ids.
            hx: (h0, c0) as in LSTM. reset: bool, shaped as the ids, true where a sequence begins anew, as in LSTM.

        Returns:
            output and (h_n, c_n) as LSTM does; then, where asked for, all cell states and all gates as LSTM does.

        Raises:
            IndexError: for an id outside 0 … V - 1 on the CPU. The CUDA kernels make NaN of what depends on it, and the next
                call (or `fastlstm.check()`) raises.
        """
        ids = input.data if isinstance(input, PackedSequence) else input
        if ids.dtype != torch.int64:
            raise TypeError(f"TokenLSTM: ids are {ids.dtype}, expected torch.int64; use ids.long()")
        if isinstance(self.lstm, Int8LSTM):  # after fastlstm.quantize
            if reset is not None or return_cell_states or return_gates:
                raise ValueError(
                    "an int8 TokenLSTM takes no reset mask and returns no cell states or gates; use the float model"
                )
            return self.lstm.run(input, hx, self.tokens)
        if type(self.lstm) is TORCH_LSTM:  # after fastlstm.restore
            return self._vectors_through(input, hx, reset, return_cell_states, return_gates)
        call = normalise(self.lstm, input, hx, reset, return_cell_states, return_gates, self.tokens)
        chosen = route(call)
        if chosen == TORCH:
            return self._vectors_through(input, hx, reset, return_cell_states, return_gates)
        return call.returned(RUN[chosen](call))

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
