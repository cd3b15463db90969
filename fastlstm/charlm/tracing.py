"""Every number inside a model while it reads a text, as numpy arrays, straight from the fused kernel.

A long text is read as many streams side by side, each begun from zero in the middle of the text; then every stream is
read again from the state its predecessor ended with, until it meets what it did the first time: h and tanh(c),
all that the network sees of a state, agree to 1e-4. So the result is that of one long stream at the speed of many. (A c
deep in the flat end of tanh may stay apart by more: nothing depends on it.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from .errors import CharLMError
from .lm import CharLM
from .model import CharModel, State

KEPT = ("h", "c", "gates", "probabilities")
TOP = 5  # predictions kept of every character
PIECE = 1 << 28  # bytes of arrays a piece may take
STEPS = 32  # steps a call: its gates stay in the cache (of six pairs of steps and streams about the fastest)
STREAMS, SHORTEST = 64, 1024  # most streams side by side, and characters that each must have
SETTLED = 1e-4  # difference of h or tanh(c) at which two readings have met


@dataclass
class Trace:
    """What a model did while it read N characters; position t is the moment after character t was read.

    L layers, H units, V symbols, K = min(5, V). Arrays that were not asked for are None.

    ids: (N,) int64, the text. top, top_p: (N, K) int64 and float32, the most likely next characters and their exact
    probabilities, falling. entropy: (N,) float32 nats, of the prediction made at t. surprise: (N,) float32 nats,
    -log p of character t as predicted at t - 1; NaN for the first. h, c: (L, N, H), hidden and cell states.
    gates: (L, N, 4, H), after their sigmoid or tanh, in the order i, f, g, o. probabilities: (N, V) float32.
    """

    ids: np.ndarray
    top: np.ndarray
    top_p: np.ndarray
    entropy: np.ndarray
    surprise: np.ndarray
    h: np.ndarray | None = None
    c: np.ndarray | None = None
    gates: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


def trace(
    model: CharLM,
    text: str | np.ndarray,
    keep: Collection[str] = ("h", "c", "gates"),
    dtype: np.dtype | type = np.float32,
) -> Trace:
    """Read a text, from a state of zero, and keep what went on inside.

    text: or its ids, (N,) integers; keep: which of h, c, gates, probabilities; dtype: of h, c and gates, float32 or
    float16. Memory: what is returned, 4 (6 L H + V) bytes a character with everything in float32, and about 50 MB;
    `pieces` needs no more for any length.
    Raises CharLMError for an empty text or a character outside the model's vocabulary.
    """
    ids = _ids(model, text)
    found = _empty(model, len(ids), _checked(keep), dtype)
    found.ids[:] = ids
    reader = _Reader(model.model)
    for start, stop in _spans(len(ids), len(ids)):
        reader.read(_part(found, start, stop))
    return found


def pieces(
    model: CharLM, text: str | np.ndarray, keep: Collection[str] = ("h", "c", "gates"), size: int = 0
) -> Iterator[Trace]:
    """The same as `trace` in pieces that follow one another, for a text of any length in bounded memory.

    size: characters of a piece, by default what fits 256 MB. Yields a Trace in float32; nothing is shared or reused.
    """
    ids, keep = _ids(model, text), _checked(keep)
    config = model.config
    floats = 4 * 6 * config.num_layers * config.hidden_size + 4 * len(model.vocab)
    size = size or max(STREAMS * SHORTEST // 4, PIECE // floats)
    reader = _Reader(model.model)
    for start, stop in _spans(len(ids), size):
        found = _empty(model, stop - start, keep, np.float32)
        found.ids[:] = ids[start:stop]
        reader.read(found)
        yield found


def nats(model: CharLM, ids: np.ndarray, module: CharModel | None = None, start: State | None = None) -> np.ndarray:
    """-log p of each character, (N,) float32, NaN for the first, as `Trace.surprise`.

    ids: (N,); module: another one to ask than the model's own; start: the state it starts from, (L, 1, H) each.
    """
    parts, reader = [], _Reader(module or model.model, start)
    for a, b in _spans(len(ids), STREAMS * SHORTEST):
        found = _empty(model, b - a, set(), np.float32)
        found.ids[:] = ids[a:b]
        reader.read(found)
        parts.append(found.surprise)
    return np.concatenate(parts)


def _ids(model: CharLM, text: str | np.ndarray) -> np.ndarray:
    if not len(text):
        raise CharLMError("the text is empty: there is nothing to trace")
    return model.vocab.encode(model.vocab.from_text(text)) if isinstance(text, str) else text


def _checked(keep: Collection[str]) -> set[str]:
    unknown = {keep} if isinstance(keep, str) else set(keep) - set(KEPT)
    if unknown:
        raise CharLMError(f"keep names {sorted(unknown)[0]!r}, expected any of {', '.join(KEPT)}, in a tuple")
    return set(keep)


def _empty(model: CharLM, n: int, keep: set[str], dtype: np.dtype | type) -> Trace:
    L, H, V = model.config.num_layers, model.config.hidden_size, len(model.vocab)
    k = min(TOP, V)
    shapes = {"h": (L, n, H), "c": (L, n, H), "gates": (L, n, 4, H)}
    kept = {name: np.empty(shape, dtype) for name, shape in shapes.items() if name in keep}
    if "probabilities" in keep:
        kept["probabilities"] = np.empty((n, V), np.float32)
    wide, flat = (np.empty((n, k), np.float32), np.empty(n, np.float32))
    return Trace(np.empty(n, np.int64), np.empty((n, k), np.int64), wide, flat, flat.copy(), **kept)


def _spans(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `size` that are whole multiples of their number of streams."""
    start = 0
    while start < n:
        length = min(size, n - start)
        length -= length % _streams(length)
        yield start, start + length
        start += length


def _streams(length: int) -> int:
    return max(1, min(STREAMS, length // SHORTEST))


def _part(found: Trace, start: int, stop: int) -> Trace:
    """A view of some positions."""
    values = {item.name: getattr(found, item.name) for item in fields(Trace)}
    by_layer = ("h", "c", "gates")
    return Trace(
        **{
            name: value if value is None else value[:, start:stop] if name in by_layer else value[start:stop]
            for name, value in values.items()
        }
    )


class _Reader:
    """Reads consecutive pieces; between them it remembers the state and the last prediction.

    start: the state before the first piece, zero by default; also what each stream begins with at first.
    """

    def __init__(self, model: CharModel, start: State | None = None):
        self.model, self.device = model, model.out.weight.device
        self.state = self.start = start or model.zero_state(1)
        self.expected: Tensor | None = None  # log p of the character after the last piece, (V,)

    @torch.no_grad()
    def read(self, found: Trace) -> None:
        """Fill in a piece whose ids are set; their number is a multiple of its streams."""
        was_training = self.model.training
        self.model.eval()
        B = _streams(len(found))
        ids = torch.from_numpy(found.ids).view(B, -1)
        into = _Into(found, B, self.model)
        begun = tuple(
            torch.cat([now, start.expand(-1, B - 1, -1)], 1) for now, start in zip(self.state, self.start, strict=True)
        )
        ends = self._run(ids, begun, into, torch.arange(B))
        while True:
            wanted = tuple(torch.cat([own[:, :1], end[:, :-1]], 1) for own, end in zip(begun, ends, strict=True))
            stale = _apart(begun, wanted).nonzero()[:, 0].cpu()
            if not len(stale):
                break
            self._again(ids, wanted, ends, into, stale)
            begun = wanted
        self.state = (ends[0][:, -1:].clone(), ends[1][:, -1:].clone())
        self._predict(found, into.top)
        self.model.train(was_training)

    def _run(self, ids: Tensor, state: State, into: _Into, rows: Tensor) -> State:
        """Read streams from their begin to their end. ids: (B, S); rows: which they are."""
        for t in range(0, ids.shape[1], STEPS):
            state = self._step(ids, t, state, into, rows)
        return state

    def _step(self, ids: Tensor, t: int, state: State, into: _Into, rows: Tensor) -> State:
        x = ids[rows, t : t + STEPS].t().contiguous().to(self.device)
        cells, gates = into.needs_cells, into.needs_gates
        out, state, *rest = self.model.rnn(x, state, return_cell_states=cells, return_gates=gates)
        into.put(t, rows, out, state, rest[0] if cells else [], rest[-1] if gates else [])
        return state

    def _again(self, ids: Tensor, wanted: State, ends: State, into: _Into, rows: Tensor) -> None:
        """Read streams from another state until each meets what it did before; one that never does gets a new end."""
        state = tuple(value[:, rows] for value in wanted)
        for t in range(0, ids.shape[1], STEPS):
            before = tuple(value[:, rows] for value in into.seams[min(t + STEPS, ids.shape[1])])
            state = self._step(ids, t, state, into, rows)
            apart = _apart(state, before).nonzero()[:, 0]
            if not len(apart):
                return
            rows, state = rows[apart.cpu()], tuple(value[:, apart].contiguous() for value in state)
        for end, value in zip(ends, state, strict=True):
            end[:, rows] = value

    def _predict(self, found: Trace, top: Tensor) -> None:
        """Probabilities from the last layer's h, (N, H)."""
        ids = torch.from_numpy(found.ids)
        for a in range(0, len(found), 8192):
            b = min(a + 8192, len(found))
            logs = torch.log_softmax(self.model.out(top[a:b].to(self.device)).float(), -1).cpu()
            p = logs.exp()
            values, which = p.topk(found.top.shape[1])
            found.top[a:b], found.top_p[a:b] = which.numpy(), values.numpy()
            found.entropy[a:b] = -torch.xlogy(p, p).sum(-1).numpy()
            first = found.surprise[a : a + 1]
            first[:] = np.nan if self.expected is None else -float(self.expected[ids[a]])
            found.surprise[a + 1 : b] = -logs[:-1].gather(1, ids[a + 1 : b, None])[:, 0].numpy()
            if found.probabilities is not None:
                found.probabilities[a:b] = p.numpy()
            self.expected = logs[-1].clone()


class _Into:
    """Where the streams of a piece go: views (L, B, S, ·) of its arrays, and all states at the end of every call."""

    def __init__(self, found: Trace, B: int, model: CharModel):
        n, H = len(found), model.out.in_features
        self.h, self.c, self.gates = (
            None if value is None else torch.from_numpy(value).unflatten(1, (B, n // B))
            for value in (found.h, found.c, found.gates)
        )
        self.top = torch.empty(n, H)
        self._top = self.top.view(B, n // B, H)
        lower = model.rnn.num_layers > 1  # whose h is o tanh(c)
        self.needs_gates = found.gates is not None or (found.h is not None and lower)
        self.needs_cells = found.c is not None or (found.h is not None and lower)
        self.seams: dict[int, State] = {}  # by step, the state of all streams after a call that ended there

    def put(self, t: int, rows: Tensor, out: Tensor, state: State, cells: list[Tensor], gates: list[Tensor]) -> None:
        """Results of one call for some streams: h of the last layer (T, R, H), c and gates of every layer asked for."""
        end = t + len(out)
        self._copy(self._top, rows, t, end, out)
        gates = [g.unflatten(-1, (4, out.shape[-1])) for g in gates]
        for layer in range(len(state[0])):
            if self.c is not None:
                self._copy(self.c[layer], rows, t, end, cells[layer])
            if self.gates is not None:
                self._copy(self.gates[layer], rows, t, end, gates[layer])
            if self.h is not None:
                last = layer == len(state[0]) - 1
                h = out if last else gates[layer][:, :, 3] * torch.tanh(cells[layer])
                self._copy(self.h[layer], rows, t, end, h)
        for seam, value in zip(self.seams.setdefault(end, self._blank(state)), state, strict=True):
            seam[:, rows] = value

    def _blank(self, state: State) -> State:
        shape = (len(state[0]), len(self._top), state[0].shape[-1])
        return state[0].new_zeros(shape), state[1].new_zeros(shape)

    @staticmethod
    def _copy(to: Tensor, rows: Tensor, t: int, end: int, value: Tensor) -> None:
        value = value.transpose(0, 1)
        if len(rows) == len(to):
            to[:, t:end].copy_(value)
        else:
            to[rows, t:end] = value.to(to.device, to.dtype)


def _apart(a: State, b: State) -> Tensor:
    """Which streams' states differ in what the network can see of them, h and tanh(c), (B,) bool."""
    (h, c), (other_h, other_c) = a, b
    differ = torch.maximum((h - other_h).abs(), (torch.tanh(c) - torch.tanh(other_c)).abs())
    return (differ > SETTLED).any(-1).any(0)
