"""The native int8 kernels (csrc/cpu/int8_lstm.h) for an Int8LSTM: weights packed once, one native call a layer and direction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm import dispatch
from fastlstm._torch_compat import dynamo_skip
from fastlstm.backends import native
from fastlstm.memory import ContentKey, empty
from fastlstm.ops import int8
from fastlstm.ops.int8 import Int8Weights, Matrix

_COLUMNS, _UNITS = 64, 16  # of a block: kInt8Columns and kUnitBlock of the kernels


class PackedInt8:
    """The weights of an Int8LSTM (below `lstm`) as the kernels read them, packed again where they have changed."""

    def __init__(self) -> None:
        self._key: ContentKey | None = None
        self._layers: list = []
        self._table_key: ContentKey | None = None
        self._tables: list[Tensor] = []

    def layers(self, lstm: nn.Module) -> list:
        """The native layers, of each layer and direction."""
        buffers = list(lstm.buffers())
        if self._key is None or not self._key.holds(buffers):
            H, P = lstm.hidden_size, lstm.proj_size or lstm.hidden_size
            self._layers = [_native_layer(own, H, P) for own in lstm.checked_weights()]
            self._key, self._table_key = ContentKey(buffers), None
        return self._layers

    def of(self, lstm: nn.Module, V: int = 0, embedding: Tensor | None = None) -> PackedLayers:
        """What runs the layers of a call.

        V: the number of ids where the call is one on ids, else 0; embedding: (V, I), None for one-hot ids.
        """
        return PackedLayers(lstm, self.layers(lstm), self._token_tables(lstm, V, embedding) if V else None)

    def _token_tables(self, lstm: nn.Module, V: int, embedding: Tensor | None) -> list[Tensor]:
        """For each direction of the first layer, every id's input side as blocks."""
        sources = [*lstm.buffers(), *([] if embedding is None else [embedding])]
        if self._table_key is None or not self._table_key.holds(sources):
            vectors = None if embedding is None else _plain(embedding)
            weights = lstm.weights()[: 2 if lstm.bidirectional else 1]
            self._tables = [_gates_in_blocks(int8.token_table(V, vectors, own)) for own in weights]
            self._table_key = ContentKey(sources)
        return self._tables


class PackedLayers:
    """The layers of one call. tables: of the first layer, where the call is one on ids."""

    def __init__(self, lstm: nn.Module, layers: list, tables: list[Tensor] | None) -> None:
        self._layers, self._tables, self._directions = layers, tables, 2 if lstm.bidirectional else 1
        self._H, self._P = lstm.hidden_size, lstm.proj_size or lstm.hidden_size
        dispatch.record_plan(f"cpu: int8, {native.load().int8_isa()}")

    def run(
        self, n: int, rows: Tensor, h0: Tensor, c0: Tensor, batch_sizes: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run layer and direction number n: h (T, B, P) or (N, P), h_n, c_n. Arguments as `ops.int8.layer` takes them."""
        by_id = self._tables is not None and n < self._directions
        T = rows.shape[0] if batch_sizes is None else batch_sizes.shape[0]
        lead = rows.shape[: 2 if batch_sizes is None else 1]
        h, h_n, c_n = (empty(shape, torch.float32) for shape in ((*lead, self._P), h0.shape, c0.shape))
        values = _plain(rows)
        native.load().int8_forward(
            layers=[self._layers[n]],
            T=T,
            B=h0.shape[0],
            H=self._H,
            P=self._P,
            reverse=reverse,
            batch_sizes=batch_sizes,
            h=h,
            h_n=h_n,
            c_n=c_n,
            x=None if by_id else values,
            table=self._tables[n] if by_id else None,
            ids=values if by_id else None,
            h0=_plain(h0),
            c0=_plain(c0),
            threads=torch.get_num_threads(),
        )
        return h, h_n, c_n


def _plain(x: Tensor) -> Tensor:
    """The numbers of a tensor, contiguous."""
    return x.detach().contiguous().resolve_neg()


def _native_layer(own: Int8Weights, H: int, P: int) -> object:
    bias = own.w_hh.scale.new_zeros(4 * H) if own.bias is None else own.bias
    return pack_layer(own.w_ih, own.w_hh, own.w_hr, bias[None], H, P)


def pack_layer(w_ih: Matrix | None, w_hh: Matrix, w_hr: Matrix | None, start: Tensor, H: int, P: int) -> object:
    """A native layer. start: (1, 4H) the bias, or (V, 4H) the table of a first layer on ids, whose w_ih may be None."""
    return native.load().Int8Layer(
        ih=None if w_ih is None else _packed(w_ih, gates=True),
        hh=_packed(w_hh, gates=True),
        hr=None if w_hr is None else _packed(w_hr, gates=False),
        start=_gates_in_blocks(start),
        I=1 if w_ih is None else w_ih.q.shape[1],
        H=H,
        P=P,
    )


def _packed(matrix: Matrix, gates: bool) -> tuple[Tensor, Tensor, Tensor]:
    """w (blocks, K / 4, 64, 4), scale (blocks, 64) and 128 times the sum of each column (blocks, 64): Int8Matrix."""
    w = _columns_in_blocks(matrix.q, gates)
    w = F.pad(w, (0, -w.shape[2] % _COLUMNS))
    blocks, columns, K = w.shape
    words = w.view(blocks, columns, K // 4, 4).transpose(1, 2).contiguous()
    sums = (w.sum(2, dtype=torch.int32) * 128).contiguous()
    return words, _columns_in_blocks(matrix.scale[:, None], gates).reshape(blocks, columns).contiguous(), sums


def _columns_in_blocks(w: Tensor, gates: bool) -> Tensor:
    """The rows of a matrix (rows, K) as (blocks, 64, K): the gates of 16 units, or 64 rows; filled up with zeros."""
    if not gates:
        return F.pad(w, (0, 0, 0, -w.shape[0] % _COLUMNS)).view(-1, _COLUMNS, w.shape[1])
    w = w.reshape(4, -1, w.shape[1])
    w = F.pad(w, (0, 0, 0, -w.shape[1] % _UNITS)).view(4, -1, _UNITS, w.shape[2])
    return w.transpose(0, 1).reshape(-1, _COLUMNS, w.shape[3])


def _gates_in_blocks(rows: Tensor) -> Tensor:
    """Rows (N, 4H) of gates as (N, blocks, 64)."""
    return _columns_in_blocks(rows.t(), gates=True).permute(2, 0, 1).contiguous()


dynamo_skip(__name__)
