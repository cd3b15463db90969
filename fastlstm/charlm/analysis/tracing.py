"""Traces: hidden states, cell states, gates and predictions of a model while it reads a text, as numpy arrays.

The text is one sequence, read in calls of STEPS_PER_CALL characters that pass on their state, so a trace equals that of
a single call over the whole text. Many streams side by side, each starting in the middle, would be about twice as fast
but wrong: trained cells were seen to remember 10,000 characters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import CharLMError
from ..lm import CharLM
from ..model import CharModel, State, not_finite

KEEP_CHOICES = ("h", "c", "gates", "probabilities")
TOP_PREDICTIONS = 5  # most likely next characters stored for every position
TRACE_BYTES = 1 << 25  # bytes of arrays of one piece: glibc reuses blocks up to this size without new page faults
STEPS_PER_CALL = 1024  # characters of a call (2 × 128 on two cores: 256 run at 80 % of the speed, 2048 are no faster)


@dataclass
class Trace:
    """Internal values of a model that read N characters; position t is after character t was read.

    L layers, H units, V symbols, K = min(5, V). Arrays that were not requested are None.

    Attributes:
        ids: (N,) int64, the text
        top: (N, K) int64, the most likely next characters, most likely first
        top_p: (N, K) float32, their probabilities
        entropy: (N,) float32, of the prediction at t, in nats
        surprise: (N,) float32, -log p of character t as predicted at t - 1, in nats; NaN for the first
        h, c: (L, N, H), hidden and cell states
        gates: (L, N, 4, H), after sigmoid or tanh, in the order i, f, g, o
        probabilities: (N, V) float32, of the next character
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
    """Read a text from a zero state and store the model's internal values.

    Memory: the arrays returned, 4 (6 L H + V) bytes a character with everything in float32, and about 50 MB. `pieces`
    needs bounded memory.

    Args:
        model: that reads
        text: a string, or its ids, (N,) integers
        keep: which of `h`, `c`, `gates`, `probabilities` to store
        dtype: of h, c and gates: float32 or float16

    Raises:
        CharLMError: the text is empty or has characters outside the vocabulary.
    """
    ids = _encode(model, text)
    part = _empty(model, len(ids), _checked_keep(keep), dtype)
    part.ids[:] = ids
    _Reader(model.model).read(part)
    return part


def pieces(
    model: CharLM, text: str | np.ndarray, keep: Collection[str] = ("h", "c", "gates"), size: int = 0
) -> Iterator[Trace]:
    """Trace a text of any length in consecutive pieces, in bounded memory.

    Args:
        model, text, keep: as for `trace`
        size: characters of a piece; 0 for as many as fit TRACE_BYTES

    Yields:
        Traces in float32, which share no memory.

    Raises:
        CharLMError: as for `trace`.
    """
    ids, keep = _encode(model, text), _checked_keep(keep)
    config = model.config
    floats = 4 * 6 * config.num_layers * config.hidden_size + 4 * len(model.vocab)
    size = size or max(1, TRACE_BYTES // floats // STEPS_PER_CALL) * STEPS_PER_CALL
    reader = _Reader(model.model)
    for start in range(0, len(ids), size):
        part = _empty(model, min(size, len(ids) - start), keep, np.float32)
        part.ids[:] = ids[start : start + size]
        reader.read(part)
        yield part


def nats(model: CharLM, ids: np.ndarray, module: CharModel | None = None, start: State | None = None) -> np.ndarray:
    """-log p of each character in nats, (N,) float32, NaN for the first, as `Trace.surprise`.

    Args:
        model: with the vocabulary
        ids: (N,), the text
        module: network to use instead of the model's own
        start: initial h and c, (L, 1, H) each; None for zero
    """
    part = _empty(model, len(ids), set(), np.float32)
    part.ids[:] = ids
    _Reader(module or model.model, start).read(part)
    return part.surprise


def _encode(model: CharLM, text: str | np.ndarray) -> np.ndarray:
    if not len(text):
        raise CharLMError("the text is empty: there is nothing to trace")
    return model.vocab.encode(model.vocab.from_text(text)) if isinstance(text, str) else text


def _checked_keep(keep: Collection[str]) -> set[str]:
    unknown = {keep} if isinstance(keep, str) else set(keep) - set(KEEP_CHOICES)
    if unknown:
        raise CharLMError(f"keep names {sorted(unknown)[0]!r}, expected any of {', '.join(KEEP_CHOICES)}, in a tuple")
    return set(keep)


def _empty(model: CharLM, n: int, keep: set[str], dtype: np.dtype | type) -> Trace:
    L, H, V = model.config.num_layers, model.config.hidden_size, len(model.vocab)
    k = min(TOP_PREDICTIONS, V)
    shapes = {"h": (L, n, H), "c": (L, n, H), "gates": (L, n, 4, H)}
    kept = {name: np.empty(shape, dtype) for name, shape in shapes.items() if name in keep}
    if "probabilities" in keep:
        kept["probabilities"] = np.empty((n, V), np.float32)
    wide, flat = (np.empty((n, k), np.float32), np.empty(n, np.float32))
    return Trace(np.empty(n, np.int64), np.empty((n, k), np.int64), wide, flat, flat.copy(), **kept)


class _Reader:
    """Reads consecutive pieces of a text and carries the state and the last prediction from one to the next.

    start: initial h and c, (L, 1, H) each; None for zero.
    """

    def __init__(self, model: CharModel, start: State | None = None):
        self.model, self.device = model, model.out.weight.device
        self.state = start or model.zero_state(1)
        self.expected: Tensor | None = None  # log p of the character after the last batch, (V,)

    @torch.no_grad()
    def read(self, part: Trace) -> None:
        """Fill in the arrays of a piece whose ids are set."""
        was_training = self.model.training
        self.model.eval()
        lower = self.model.rnn.num_layers > 1 and part.h is not None  # whose h is o tanh(c)
        cells, gates = lower or part.c is not None, lower or part.gates is not None
        for a in range(0, len(part), STEPS_PER_CALL):
            at = slice(a, min(a + STEPS_PER_CALL, len(part)))
            ids = torch.from_numpy(part.ids[at])[:, None].to(self.device)
            out, self.state, *rest = self.model.rnn(ids, self.state, return_cell_states=cells, return_gates=gates)
            _store(part, at, out, rest[0] if cells else [], rest[-1] if gates else [])
            self._predict(part, at, out[:, 0])
        self.model.train(was_training)

    def _predict(self, part: Trace, at: slice, out: Tensor) -> None:
        """Store the predictions at positions `at`. out: (n, H), h of the last layer."""
        scores = self.model.out(out).float().cpu()
        if not scores.isfinite().all():
            raise not_finite(self.model)
        p, logs = torch.softmax(scores, -1), torch.log_softmax(scores, -1)  # exp(logs) would lose two bits
        values, which = p.topk(part.top.shape[1])
        part.top[at], part.top_p[at] = which.numpy(), values.numpy()
        part.entropy[at] = -(p * logs).sum(-1).numpy()
        ids, surprise = torch.from_numpy(part.ids[at]), part.surprise[at]
        surprise[0] = np.nan if self.expected is None else -float(self.expected[ids[0]])
        surprise[1:] = -logs[:-1].gather(1, ids[1:, None])[:, 0].numpy()
        if part.probabilities is not None:
            part.probabilities[at] = p.numpy()
        self.expected = logs[-1]


def _store(part: Trace, at: slice, out: Tensor, cells: list[Tensor], gates: list[Tensor]) -> None:
    """Store the results of a call: h of the last layer (n, 1, H), c (n, 1, H) and gates (n, 1, 4H) of every layer."""
    gates = [g[:, 0].unflatten(-1, (4, -1)) for g in gates]
    if part.c is not None:
        for layer, c in enumerate(cells):
            _copy(part.c[layer, at], c[:, 0])
    if part.gates is not None:
        for layer, g in enumerate(gates):
            _copy(part.gates[layer, at], g)
    if part.h is not None:
        for layer in range(len(part.h) - 1):
            _copy(part.h[layer, at], gates[layer][:, 3] * torch.tanh(cells[layer][:, 0]))
        _copy(part.h[-1, at], out[:, 0])


def _copy(to: np.ndarray, value: Tensor) -> None:
    torch.from_numpy(to).copy_(value)
