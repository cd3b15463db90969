"""Splits a corpus into training and validation text, and makes batches of both.

Training text is read as B streams side by side. Batch k of an epoch is columns kT … (k + 1)T of all streams. Stream b
continues in batch k + 1 where batch k ended, so the state is carried over (truncated back-propagation through time).

    streams     char-rnn's split: the text is cut into B equal streams, the last 5 % of the batches validate
    contiguous  the last part of the text validates
    lines       whole lines, each once, chosen at random; the training lines are shuffled anew for each epoch
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import CharLMError, count
from .corpus import Corpus

SPLITS = ("streams", "contiguous", "lines")
WARM_UP = 128  # characters of context before a validation stream that starts in the middle of a text
_LINES_SEED = 20151  # which lines validate is a property of the corpus, not of a run


class IdSource(Protocol):
    """Ids by position in an epoch's own order."""

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray: ...


@dataclass
class SequentialText:
    """Ids in the order of the text; positions past the end wrap."""

    ids: np.ndarray

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        return self.ids[positions % len(self.ids)]


class ShuffledItems:
    """Items in a random order that depends on (seed, epoch); the ids are not copied.

    Args:
        ids: (N,)
        starts, stops: span of each item in `ids`, (K,)
        seed: of the orders
    """

    def __init__(self, ids: np.ndarray, starts: np.ndarray, stops: np.ndarray, seed: int):
        self.ids, self.starts, self.lengths, self.seed = ids, starts, stops - starts, seed
        self.total = int(self.lengths.sum())
        self._epoch = -1

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        if epoch != self._epoch:
            order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.starts))
            self._ends = np.cumsum(self.lengths[order])
            self._shift = self.starts[order] - (self._ends - self.lengths[order])  # stored position - shuffled position
            self._epoch = epoch
        positions = positions % self.total
        return self.ids[positions + self._shift[np.searchsorted(self._ends, positions, side="right")]]


@dataclass
class TrainText:
    """Training text as B streams.

    Attributes:
        text: the ids
        origins: (B,) position of each stream's first character
        batches: batches in an epoch
        seq_length: T, steps in a batch
    """

    text: IdSource
    origins: np.ndarray
    batches: int
    seq_length: int

    def batch(self, epoch: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of batch k, (T, B) int64 each."""
        steps = np.arange(k * self.seq_length, (k + 1) * self.seq_length + 1)
        ids = self.text.at(epoch, steps[:, None] + self.origins).astype(np.int64)
        return ids[:-1], ids[1:]

    def share(self, rank: int, ranks: int) -> TrainText:
        """The streams of one of several processes."""
        return TrainText(self.text, np.array_split(self.origins, ranks)[rank], self.batches, self.seq_length)


@dataclass
class EvalText:
    """Text to evaluate a model on, as S streams side by side. Every character is scored at most once.

    Attributes:
        ids: the text
        origins: (S,) position of each stream's first input
        skip: (S,) leading predictions of each stream that warm up the state and are not scored
        length: (S,) inputs of each stream
    """

    ids: np.ndarray
    origins: np.ndarray
    skip: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        """Number of scored predictions."""
        return int((self.length - self.skip).sum())

    def chunks(self, size: int):
        """Yields (inputs (T, S), targets (T, S), counted (T, S) bool), `size` steps at a time."""
        for first in range(0, int(self.length.max(initial=0)), size):
            steps = np.arange(first, min(first + size, int(self.length.max())) + 1)[:, None]
            ids = self.ids[(steps + self.origins) % len(self.ids)].astype(np.int64)
            counted = (steps[:-1] >= self.skip) & (steps[:-1] < self.length)
            yield ids[:-1], ids[1:], counted

    def share(self, rank: int, ranks: int) -> EvalText:
        """The streams of one of several processes."""
        part = np.array_split(np.arange(len(self.origins)), ranks)[rank]
        return EvalText(self.ids, self.origins[part], self.skip[part], self.length[part])


def held_out(ids: np.ndarray, context: int, streams: int) -> EvalText:
    """Evaluation text that scores every character of `ids[context:]` once.

    Args:
        ids: (N,)
        context: leading characters that only warm up the state
        streams: number of streams, fewer for a short text; each begins with WARM_UP characters of context
    """
    if context == 0:
        context = 1  # the first character has nothing to be predicted from
    total = len(ids) - context
    streams = max(1, min(streams, total // (4 * WARM_UP)))
    cuts = context + np.arange(streams + 1) * total // streams
    origins = np.maximum(cuts[:-1] - 1 - WARM_UP, 0)
    return EvalText(ids, origins, cuts[:-1] - 1 - origins, cuts[1:] - 1 - origins)


@dataclass
class CorpusSplit:
    """A corpus, divided. train_spans, val_spans: (K, 2) starts and stops of either text in the corpus."""

    train: TrainText
    val: EvalText
    train_spans: np.ndarray
    val_spans: np.ndarray


def _spans(starts: np.ndarray, stops: np.ndarray | int) -> np.ndarray:
    return np.stack(np.broadcast_arrays(starts, stops), -1)


def divide(corpus: Corpus, split: str, val_frac: float, batch_size: int, seq_length: int, seed: int) -> CorpusSplit:
    """Divide a corpus into training and validation text.

    Args:
        corpus: to divide
        split: one of SPLITS
        val_frac: share of the text for validation
        batch_size: B, streams
        seq_length: T, characters
        seed: of the order of the training lines

    Raises:
        CharLMError: the corpus is too short for one batch of each.
    """
    block = batch_size * seq_length
    if len(corpus) < 2 * block:
        raise CharLMError(
            f"{corpus.name} has {count(len(corpus), 'character')}, too few for a training batch and a "
            f"validation batch of {batch_size} × {seq_length} = {block:,}: choose a smaller --batch-size "
            "or --seq-length"
        )
    divide_by = {"streams": _streams, "contiguous": _contiguous, "lines": _lines}[split]
    data = divide_by(corpus, val_frac, batch_size, seq_length, seed)
    if data.train.batches < 1 or len(data.val) < 1:
        raise CharLMError(
            f"{corpus.name} leaves {count(max(data.train.batches, 0), 'training batch')} and "
            f"{count(max(len(data.val), 0), 'character')} to validate with --val-frac {val_frac}: change it, or "
            "choose a smaller --batch-size or --seq-length"
        )
    return data


def _streams(corpus: Corpus, val_frac: float, B: int, T: int, seed: int) -> CorpusSplit:
    batches = len(corpus) // (B * T)
    train = min(int(batches * (1 - val_frac) + 1e-6), batches - 1)
    length = batches * T
    ids = corpus.ids[: B * length]
    origins = np.arange(B, dtype=np.int64) * length
    zero = np.zeros(B, np.int64)
    val = EvalText(ids, origins + train * T, zero, zero + (batches - train) * T)
    train_spans = _spans(origins, origins + train * T)
    return CorpusSplit(
        TrainText(SequentialText(ids), origins, train, T), val, train_spans, _spans(train_spans[:, 1], origins + length)
    )


def _contiguous(corpus: Corpus, val_frac: float, B: int, T: int, seed: int) -> CorpusSplit:
    n = int(len(corpus) * (1 - val_frac) + 1e-6)  # 1 - 0.9 is a little less than 0.1
    length = (n - 1) // B
    train = TrainText(SequentialText(corpus.ids[:n]), np.arange(B, dtype=np.int64) * length, length // T, T)
    context = min(WARM_UP, n)
    val = held_out(corpus.ids[n - context :], context, B)
    return CorpusSplit(train, val, np.array([[0, n]]), np.array([[n, len(corpus)]]))


def _lines(corpus: Corpus, val_frac: float, B: int, T: int, seed: int) -> CorpusSplit:
    if corpus.starts is None or not corpus.options.unique:
        raise CharLMError("the split 'lines' needs a corpus that was read as unique lines")
    items = len(corpus.starts) - 1
    order = np.random.Generator(np.random.Philox(key=[_LINES_SEED, items])).permutation(items)
    n_val = max(1, round(items * val_frac))
    val, train = np.sort(order[:n_val]), np.sort(order[n_val:])
    text = ShuffledItems(corpus.ids, corpus.starts[train], corpus.starts[train + 1], seed)
    length = text.total // B
    train_text = TrainText(text, np.arange(B, dtype=np.int64) * length, length // T, T)
    # The validation lines follow some training lines, which warm up the state.
    before = order[n_val : n_val + 1 + WARM_UP]
    context = _gather(corpus, before)[-WARM_UP:]
    val_ids = np.concatenate([context, _gather(corpus, order[:n_val])])
    eval_text = held_out(val_ids, len(context), B)
    return CorpusSplit(
        train_text, eval_text, *(_spans(corpus.starts[part], corpus.starts[part + 1]) for part in (train, val))
    )


def _gather(corpus: Corpus, items: np.ndarray) -> np.ndarray:
    """The ids of some items, concatenated."""
    spans = [corpus.ids[corpus.starts[k] : corpus.starts[k + 1]] for k in items]
    return np.concatenate(spans) if spans else np.zeros(0, corpus.ids.dtype)
