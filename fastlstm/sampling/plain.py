"""The decoder in torch operations: the definition, and what runs where the native module does not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm import dispatch
from fastlstm.ops import int8
from fastlstm.ops.int8 import Matrix
from fastlstm.sampling.options import FAILED, Options, Streams
from fastlstm.sampling.weights import Layer, Weights

_MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words, 0 … 2³² - 1 in int64, for each counter of four. Source: Salmon et al. 2011.

    counter: int64 tensors of one shape; seed: the key, its low word first.
    """
    a, b, c, d = counter
    low, high = seed & _MASK, seed >> 32
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57  # modulo 2⁶⁴
        a, b, c, d = (right >> 32 & _MASK) ^ b ^ low, right & _MASK, (left >> 32 & _MASK) ^ d ^ high, left & _MASK
        low, high = (low + 0x9E3779B9) & _MASK, (high + 0xBB67AE85) & _MASK
    return a, b, c, d


def gumbel(V: int, seed: int, position: int, streams: Tensor) -> Tensor:
    """-log(-log(u)) for every stream, (B,), and id: (B, V) float64. u = (word + 1/2) 2⁻³², word v % 4 of counter v // 4."""
    groups = torch.arange((V + 3) // 4, dtype=torch.int64, device=streams.device)
    n, b = torch.broadcast_tensors(groups[None], streams[:, None])
    words = philox((n, torch.full_like(n, position & _MASK), b, torch.full_like(n, position >> 32)), seed)
    u = (torch.stack(words, -1).flatten(1)[:, :V].double() + 0.5) * 2.0**-32
    return -(-u.log()).log()


def choose(scores: Tensor, options: Options, position: int, streams: Tensor) -> Tensor:
    """One id of each row, (B,), or FAILED. scores: (B, V), -inf where an id is forbidden; streams: (B,) their numbers."""
    scores = scores.double()
    top = scores.amax(1, keepdim=True)  # NaN if one is
    if options.temperature == 0:
        ids = scores.argmax(1)
    else:
        keys = truncated((scores - top) / options.temperature, options.top_k, options.top_p)
        ids = (keys + gumbel(scores.shape[1], options.seed, position, streams)).argmax(1)
    return torch.where(top[:, 0].isfinite(), ids, FAILED)


def truncated(keys: Tensor, top_k: int, top_p: float) -> Tensor:
    """`keys`, log-probabilities but for a constant of each row, with -inf for what top-k and then top-p leave out."""
    order = torch.sort(keys, dim=1, descending=True, stable=True).indices  # of equals the lower id goes first
    ordered = keys.gather(1, order)
    if 0 < top_k < keys.shape[1]:
        ordered[:, top_k:] = -torch.inf
    if top_p < 1:
        weights = ordered.exp()
        before = weights.cumsum(1) - weights
        dropped = before >= top_p * weights.sum(1, keepdim=True)  # the one that crosses the line stays
        dropped[:, 0] = False
        ordered = ordered.masked_fill(dropped, -torch.inf)
    return torch.empty_like(keys).scatter_(1, order, ordered)


class TorchEngine:
    """Draws with torch operations, step by step, on the device and in the type of the weights."""

    def __init__(self, weights: Weights) -> None:
        is_int8 = weights.stored is torch.int8

        def kept(w: Tensor | Matrix | None) -> Tensor | Matrix | None:
            if isinstance(w, Matrix):
                return Matrix(w.q.clone(), w.scale.clone())
            return None if w is None else w.to(w.dtype if is_int8 else weights.stored).to(w.dtype, copy=True)

        layers = [Layer(start.clone(), kept(a), kept(b), kept(r)) for start, a, b, r in weights.layers]
        self.weights = Weights(weights.sizes, layers, kept(weights.w_out), weights.b_out.clone(), weights.stored)

    @torch.no_grad()
    def run(self, streams: Streams, options: Options, ids: Tensor, log_probs: Tensor | None) -> None:
        """Feed the rows of `ids` that `streams` has not fed yet and draw the others, for every stream that has not ended."""
        known = len(streams.ids)
        for row in range(streams.fed, len(ids) - 1):
            live = (streams.ended == 0).nonzero()[:, 0]
            if len(live) == 0:
                break
            h = self.step(ids[row, live], streams, live)
            if row + 1 < known:
                continue
            scores, t = F.linear(h, self.weights.w_out, self.weights.b_out), row + 1 - known
            drawn = choose(
                self.allowed(scores, streams, options, live), options, options.position + streams.steps + t, live
            )
            ids[row + 1, live] = drawn
            if log_probs is not None:
                chosen = scores.double().log_softmax(1).gather(1, drawn.clamp(min=0)[:, None])[:, 0]
                log_probs[t, live] = chosen.to(log_probs.dtype)
            _advance(streams, options, ids[streams.before : row + 2], live)
        dispatch.record_plan(f"reference: decode, {ids.shape[1]} streams, step by step in torch operations")

    def step(self, ids: Tensor, streams: Streams, live: Tensor) -> Tensor:
        """Feed (B,) ids to the streams `live`, (B,): their state is updated; the last layer's h (B, P) is returned."""
        y = None
        for k, layer in enumerate(self.weights.layers):
            start = layer.start[ids] if y is None else _linear(y, layer.w_ih, layer.start)
            i, f, g, o = (start + _linear(streams.h[k, live], layer.w_hh)).chunk(4, 1)
            c = torch.sigmoid(f) * streams.c[k, live] + torch.sigmoid(i) * torch.tanh(g)
            y = torch.sigmoid(o) * torch.tanh(c)
            y = y if layer.w_hr is None else _linear(y, layer.w_hr)
            streams.h[k, live], streams.c[k, live] = y, c
        return y

    @staticmethod
    def allowed(scores: Tensor, streams: Streams, options: Options, live: Tensor) -> Tensor:
        """The scores (B, V), -inf where the automaton forbids an id."""
        if streams.states is None:
            return scores
        follows = options.follows.to(scores.device)[streams.states[live].long()]
        return scores.masked_fill(follows < 0, -torch.inf)


def _linear(x: Tensor, w: Tensor | Matrix, bias: Tensor | None = None) -> Tensor:
    if not isinstance(w, Matrix):
        return F.linear(x, w, bias)
    return int8.product(x, w) if bias is None else int8.product(x, w) + bias


def _advance(streams: Streams, options: Options, rows: Tensor, live: Tensor) -> None:
    """Take note of the last of `rows`, which all were drawn: the automaton's next state, and who has ended."""
    drawn = rows[-1, live]
    ended = drawn < 0
    if streams.states is not None:
        follows = options.follows.to(rows.device)
        streams.states[live] = follows[streams.states[live].long(), drawn.clamp(min=0)]
    for stop in options.stop:
        if len(stop) <= len(rows):
            wanted = torch.tensor(stop, dtype=torch.int64, device=rows.device)[:, None]
            ended |= (rows[-len(stop) :, live] == wanted).all(0)
    streams.ended[live] = ended.to(streams.ended.dtype)
