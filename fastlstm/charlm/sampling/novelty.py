"""Novelty of sampled lines: whether each is in the training or validation set, and the nearest training line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..data.corpus import Corpus
from ..data.splits import CorpusSplit

MAX_COMPARED = 100_000  # training lines that a sample is compared with


@dataclass(frozen=True)
class LineNovelty:
    """Novelty of one line. origin: `train`, `val` or `new`; nearest: training line; distance: edits to it."""

    line: str
    origin: str
    nearest: str
    distance: int


class TrainingLines:
    """Lines of the training and validation sets, to compare samples with."""

    def __init__(self, train: Iterable[str], val: Iterable[str]):
        self.train = {line.strip(): None for line in train}
        self.val = {line.strip() for line in val} - set(self.train)
        self.lines = [line for line in self.train if line][:MAX_COMPARED]
        self._codes, self._lengths = _padded(self.lines)

    @classmethod
    def of_split(cls, corpus: Corpus, data: CorpusSplit) -> TrainingLines:
        """The lines of both parts of a divided corpus."""
        parts = []
        for spans in (data.train_spans, data.val_spans):
            text = "\n".join(corpus.vocab.decode(corpus.ids[start:stop]) for start, stop in spans)
            parts.append(corpus.vocab.to_text(text).split("\n"))
        return cls(*parts)

    def origin(self, line: str) -> str:
        """`train` or `val` if the line is in that set, else `new`."""
        line = line.strip()
        return "train" if line in self.train else "val" if line in self.val else "new"

    def novelty(self, line: str) -> LineNovelty:
        """Origin of a line, the nearest training line and the distance to it."""
        line = line.strip()
        if line in self.train:
            return LineNovelty(line, "train", line, 0)
        distances = edit_distances(line, self._codes, self._lengths)
        nearest = int(distances.argmin())
        return LineNovelty(line, self.origin(line), self.lines[nearest], int(distances[nearest]))


def _padded(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points of lines as a matrix (K, longest), and their lengths (K,)."""
    lengths = np.array([len(line) for line in lines])
    codes = np.full((len(lines), int(lengths.max(initial=0))), -1, np.int32)
    for row, line in zip(codes, lines, strict=True):
        row[: len(line)] = [ord(symbol) for symbol in line]
    return codes, lengths


def edit_distances(line: str, codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Levenshtein distance of a line to many, (K,): the usual table, one column of it for all of them at a time."""
    K, longest = codes.shape
    column = np.tile(np.arange(longest + 1, dtype=np.int32), (K, 1))
    for i, symbol in enumerate(line, 1):
        changed = column[:, :-1] + (codes != ord(symbol))
        best = np.minimum(changed, column[:, 1:] + 1)
        column[:, 0] = i
        # Insertions run along the row: d[j] = min(best[j], d[j - 1] + 1), a running minimum of best[j] - j.
        steps = np.arange(1, longest + 1, dtype=np.int32)
        running = np.minimum.accumulate(np.concatenate([column[:, :1], best - steps], 1), axis=1)
        column[:, 1:] = running[:, 1:] + steps
    return column[np.arange(K), lengths]
