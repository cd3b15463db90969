"""Every number inside a model while it reads a text, as numpy arrays, straight from the fused kernel.

A text is one sequence: it is read in batches of STEPS characters, each from the state that the one before ended with, so
a trace holds what a single call over all of it returns, with that call's rounding and no other. Many streams side by
side, each begun in the middle, would read about twice as fast, and wrong: trained cells were seen to remember 10,000
characters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import CharLMError
from ..lm import CharLM
from ..model import CharModel, State

KEPT = ("h", "c", "gates", "probabilities")
TOP = 5  # predictions kept of every character
PIECE = 1 << 25  # bytes of arrays a piece may take: what the allocator gives again without asking the system
STEPS = 1024  # characters a batch (2 × 128 on two cores: 256 run at 80 % of the speed, 2048 are no faster)


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
    _Reader(model.model).read(found)
    return found


def pieces(
    model: CharLM, text: str | np.ndarray, keep: Collection[str] = ("h", "c", "gates"), size: int = 0
) -> Iterator[Trace]:
    """The same as `trace` in pieces that follow one another, for a text of any length in bounded memory.

    size: characters of a piece, by default what fits 32 MB. Yields a Trace in float32; nothing is shared or reused.
    """
    ids, keep = _ids(model, text), _checked(keep)
    config = model.config
    floats = 4 * 6 * config.num_layers * config.hidden_size + 4 * len(model.vocab)
    size = size or max(1, PIECE // floats // STEPS) * STEPS
    reader = _Reader(model.model)
    for start in range(0, len(ids), size):
        found = _empty(model, min(size, len(ids) - start), keep, np.float32)
        found.ids[:] = ids[start : start + size]
        reader.read(found)
        yield found


def nats(model: CharLM, ids: np.ndarray, module: CharModel | None = None, start: State | None = None) -> np.ndarray:
    """-log p of each character, (N,) float32, NaN for the first, as `Trace.surprise`.

    ids: (N,); module: another one to ask than the model's own; start: the state it starts from, (L, 1, H) each.
    """
    found = _empty(model, len(ids), set(), np.float32)
    found.ids[:] = ids
    _Reader(module or model.model, start).read(found)
    return found.surprise


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


class _Reader:
    """Reads consecutive pieces; between them it remembers the state and the last prediction.

    start: the state before the first piece, zero by default.
    """

    def __init__(self, model: CharModel, start: State | None = None):
        self.model, self.device = model, model.out.weight.device
        self.state = start or model.zero_state(1)
        self.expected: Tensor | None = None  # log p of the character after the last batch, (V,)

    @torch.no_grad()
    def read(self, found: Trace) -> None:
        """Fill in a piece whose ids are set."""
        was_training = self.model.training
        self.model.eval()
        lower = self.model.rnn.num_layers > 1 and found.h is not None  # whose h is o tanh(c)
        cells, gates = lower or found.c is not None, lower or found.gates is not None
        for a in range(0, len(found), STEPS):
            at = slice(a, min(a + STEPS, len(found)))
            ids = torch.from_numpy(found.ids[at])[:, None].to(self.device)
            out, self.state, *rest = self.model.rnn(ids, self.state, return_cell_states=cells, return_gates=gates)
            _keep(found, at, out, rest[0] if cells else [], rest[-1] if gates else [])
            self._predict(found, at, out[:, 0])
        self.model.train(was_training)

    def _predict(self, found: Trace, at: slice, out: Tensor) -> None:
        """Predictions from the last layer's h at some positions, (n, H)."""
        scores = self.model.out(out).float().cpu()
        p, logs = torch.softmax(scores, -1), torch.log_softmax(scores, -1)  # exp(logs) would lose two bits
        values, which = p.topk(found.top.shape[1])
        found.top[at], found.top_p[at] = which.numpy(), values.numpy()
        found.entropy[at] = -(p * logs).sum(-1).numpy()
        ids, surprise = torch.from_numpy(found.ids[at]), found.surprise[at]
        surprise[0] = np.nan if self.expected is None else -float(self.expected[ids[0]])
        surprise[1:] = -logs[:-1].gather(1, ids[1:, None])[:, 0].numpy()
        if found.probabilities is not None:
            found.probabilities[at] = p.numpy()
        self.expected = logs[-1]


def _keep(found: Trace, at: slice, out: Tensor, cells: list[Tensor], gates: list[Tensor]) -> None:
    """What a batch returned: h of the last layer (n, 1, H), c (n, 1, H) and gates (n, 1, 4H) of every layer asked for."""
    gates = [g[:, 0].unflatten(-1, (4, -1)) for g in gates]
    if found.c is not None:
        for layer, c in enumerate(cells):
            _copy(found.c[layer, at], c[:, 0])
    if found.gates is not None:
        for layer, g in enumerate(gates):
            _copy(found.gates[layer, at], g)
    if found.h is not None:
        for layer in range(len(found.h) - 1):
            _copy(found.h[layer, at], gates[layer][:, 3] * torch.tanh(cells[layer][:, 0]))
        _copy(found.h[-1, at], out[:, 0])


def _copy(to: np.ndarray, value: Tensor) -> None:
    torch.from_numpy(to).copy_(value)
