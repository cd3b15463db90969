"""Searches for cells that follow a label: every unit of every layer is scored against every label of a text.

A unit is chosen on the first half of the text and scored again on the second. It passes if

- its score on the second half is at least AUC 0.9 or rank correlation 0.7; the first half has no say in that;
- it is no chance find: both halves agree in direction, and the lesser score of the two is at least half that effect and so high
  that the false-discovery rate, estimated with labels shifted around the text, is at most 5 %;
- it predicts the label better than the last two characters do. A unit that spikes at capitals echoes its input, and
  untrained models have such units too.

Layers and units count from 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import CharLMError
from ..lm import CharLM
from .clamp import Clamp, ClampTest
from .excerpt import Excerpt, of_text
from .labels import Label, labels
from .ranking import Scores, effect, interval, score, threshold
from .tracing import pieces

MIN_EFFECT = {True: 0.8, False: 0.7}  # by `binary`: 2 AUC - 1 at AUC 0.9; rank correlation
FDR = 0.05  # greatest false-discovery rate
SHIFTS = 40
MIN_SPANS = 5  # of a label in each half of the text; labels with fewer are not scored
STATES = ("c", "h")
SATURATED = (0.1, 0.9)  # a gate below or above is saturated


@dataclass
class CellFinding:
    """Result of the search for one label. Scores are AUC or rank correlation.

    The reported unit is, of those that reach MIN_EFFECT on the first half, the one whose tanh(c) varies most with the
    label there; if there is none, the one with the best fit.

    Attributes:
        label: its name
        measure: `AUC` or `rank correlation`
        share: of characters at which the label is on or, if it is scalar, defined
        status: `found`, `near` (the held-out score is too low, and its interval reaches what is asked), `none`, `echo` (the last
            two characters predict the label as well) or `rare` (too few spans, not scored)
        layer, unit: position of the unit
        state: `c` or `h`
        sign: -1 if the unit falls where the label rises
        fit, held_out: score of the unit on the first and on the second half
        low, high: 95 % interval of `held_out`, by block bootstrap
        threshold: that the held-out score must reach; None if no threshold gives the false-discovery rate
        control: 95 % quantile of the best score over the shifts
        last_two: score of the last two characters
        passing: number of units that pass
        false_rate: false-discovery rate at the threshold
        clamp: effect of clamping the unit, if it was found
    """

    label: str
    measure: str
    share: float
    status: str = "rare"
    layer: int | None = None
    unit: int | None = None
    state: str | None = None
    sign: int = 1
    fit: float | None = None
    held_out: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    control: float | None = None
    last_two: float | None = None
    passing: int = 0
    false_rate: float | None = None
    clamp: Clamp | None = None


@dataclass
class Findings:
    """Result of `find_cells`, for L layers of H units.

    Attributes:
        text: name of the text
        characters: its length
        rows: one a label, found ones first
        label: (L, H), index in `rows` of the label that each cell follows best; -1 for none
        score: (L, H), effect of the cell on that label on the second half, 0 to 1
        passes: (L, H) bool, whether the cell passes for that label
        saturation: (L, 2, 3, H), share of characters at which gate i, f, o is below 0.1 and above 0.9
        notes: for the user
    """

    text: str
    characters: int
    rows: list[CellFinding]
    label: np.ndarray
    score: np.ndarray
    passes: np.ndarray
    saturation: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of cells that pass for any label."""
        return float(self.passes.mean())

    def as_json(self) -> dict[str, Any]:
        """Plain values for json.dumps; non-finite numbers are None."""
        rows = [_plain(asdict(row) | {"ratio": row.clamp.ratio if row.clamp else None}) for row in self.rows]
        rule = {
            "auc": (1 + MIN_EFFECT[True]) / 2,
            "rank_correlation": MIN_EFFECT[False],
            "false_rate": FDR,
            "shifts": SHIFTS,
        }
        passing = [{"layer": int(k), "unit": int(u)} for k, u in np.argwhere(self.passes)]
        counts = {"cells": self.passes.size, "passing": len(passing), "share": self.share}
        head = {"text": self.text, "characters": self.characters, "fit": self.characters // 2, "threshold": rule}
        return {**head, **counts, "rows": rows, "passing_cells": passing, "notes": self.notes}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def find_cells(model: CharLM, text: str | Excerpt, clamp: bool = True, shifts: int = SHIFTS, seed: int = 0) -> Findings:
    """Score every cell of a model against every label of a text. Memory: 4 L H bytes a character.

    Args:
        model: to search
        text: not of the training set; at least 10,000 characters, better 100,000
        clamp: also clamp each cell that is found and measure the loss
        shifts: of the control
        seed: of the shifts

    Raises:
        CharLMError: the text has fewer than 200 characters, or the shifts are too few for the false-discovery rate.
    """
    piece = of_text(model, text) if isinstance(text, str) else text
    if shifts < 1 / FDR:
        raise CharLMError(f"{shifts} shifts cannot tell a false-discovery rate of {FDR:.0%}: expected at least 20")
    if len(piece) < 200:
        raise CharLMError(f"{piece.name} has {len(piece)} characters, too few to score cells on: expected 200 at least")
    signals, saturation = _signals(model, piece)
    shape = (model.config.num_layers, len(STATES), model.config.hidden_size)
    search = _CellSearch(piece, signals, shape, labels(piece.text), shifts, seed)
    if clamp:
        search.clamp(model)
    return search.findings(saturation)


def _signals(model: CharLM, piece: Excerpt) -> tuple[np.ndarray, np.ndarray]:
    """c and h of every unit, (N, L · 2 · H) float16, and `Findings.saturation`."""
    L, H = model.config.num_layers, model.config.hidden_size
    signals, counts, at = np.empty((len(piece), L, len(STATES), H), np.float16), np.zeros((L, 2, 3, H)), 0
    for part in pieces(model, piece.ids):
        span = slice(at, at + len(part))
        for k, state in enumerate(STATES):
            signals[span, :, k] = getattr(part, state).transpose(1, 0, 2).clip(-6e4, 6e4)
        sigmoids = part.gates[:, :, [0, 1, 3]]
        counts[:, 0] += (sigmoids < SATURATED[0]).sum(1)
        counts[:, 1] += (sigmoids > SATURATED[1]).sum(1)
        at += len(part)
    return signals.reshape(len(piece), -1), counts / len(piece)


class _CellSearch:
    """The findings of all labels and the effects of all units. shape: (L, 2, H)."""

    def __init__(
        self,
        piece: Excerpt,
        signals: np.ndarray,
        shape: tuple[int, int, int],
        known: list[Label],
        shifts: int,
        seed: int,
    ):
        self.piece, self.signals, self.shape = piece, signals, shape
        self.labels = {label.name: label for label in known}
        self.rows = {label.name: CellFinding(label.name, _measure(label), _share(label)) for label in known}
        self.effects = {name: np.zeros(signals.shape[1]) for name in self.labels}
        for group in _groups([label for label in known if _enough(label)]):
            where = _positions(group[0])
            values = np.stack([label.values[where] for label in group]).astype(np.float32)
            binary = np.array([label.binary for label in group])
            scores = score(signals if where.all() else signals[where], values, binary, shifts, seed)
            for k, label in enumerate(group):
                self._judge(label, scores, k, _last_two(piece.ids, where, values[k], label.binary), seed)

    def _judge(self, label: Label, scores: Scores, k: int, last_two: tuple[float, float], seed: int) -> None:
        """Fill in the finding of a label. Its unit is chosen on the first half; the second half decides whether it passes."""
        row, fit, held_out, least = self.rows[label.name], scores.fit[k], scores.held_out[k], MIN_EFFECT[label.binary]
        control = scores.control[:, k]
        large = np.where(held_out >= least, scores.both[k], 0)  # chance finds are counted whether they are large or not
        level, false = threshold(large, control, least / 2, FDR)
        good, echo = large >= level, held_out <= last_two[1]
        promising = fit >= least
        telling = promising & (fit > last_two[0])
        best = self._best(label, fit, telling if telling.any() else promising)
        layer, state, unit = np.unravel_index(best, self.shape)
        row.layer, row.unit, row.state, row.sign = int(layer), int(unit), STATES[state], int(scores.sign[k, best])

        def shown(value: float) -> float:
            return float((1 + value) / 2 if label.binary else value)

        row.fit, row.held_out, row.last_two = (shown(v) for v in (fit[best], held_out[best], last_two[1]))
        low, high = self._interval(label, best, row.sign, seed)
        row.low, row.high = shown(low), shown(high)
        row.threshold = shown(max(level, least)) if np.isfinite(level) else None
        row.control = shown(np.quantile(control.max(1), 0.95))
        near = "near" if high >= least > held_out[best] and not echo[best] else "none"
        row.status = near if not good[best] else "echo" if echo[best] else "found"
        row.passing, row.false_rate = int((good & ~echo).sum()), false
        self.effects[label.name] = np.where(good & ~echo, 2 + held_out, held_out)

    def _best(self, label: Label, fit: np.ndarray, promising: np.ndarray) -> int:
        """Of the promising units the one whose tanh(c) varies most with the label on the first half, else the best fit.

        A high rank effect alone is not enough: a cell far in the saturated range of tanh changes nothing in h.
        """
        if not promising.any():
            return int(np.argmax(fit))
        half = len(self.piece) // 2
        where = np.flatnonzero(_positions(label)[:half])
        values = label.values[where].astype(np.float32)
        values = (values - values.mean()) / max(float(values.std()), 1e-9)
        c = np.arange(len(fit)).reshape(self.shape)
        c[:, 1] = c[:, 0]  # the column of each unit's c, for its c and its h
        units = np.flatnonzero(promising)
        moves = [abs(float(values @ np.tanh(self.signals[where, c.flat[u]].astype(np.float32)))) for u in units]
        return int(units[np.argmax(moves)])

    def _interval(self, label: Label, column: int, sign: int, seed: int) -> tuple[float, float]:
        """95 % interval of the effect of one signal, times sign, on the second half of the label's positions."""
        where = np.flatnonzero(_positions(label))
        where = where[len(where) // 2 :]
        return interval(sign * self.signals[where, column].astype(np.float32), label.values[where], label.binary, seed)

    def clamp(self, model: CharLM) -> None:
        """Clamp the cell of each label that was found, on the second half of the text."""
        found_rows = [row for row in self.rows.values() if row.status == "found"]
        half = len(self.piece) // 2
        clamps = ClampTest(model, self.piece.ids[half:]) if found_rows else None
        for row in found_rows:
            label = self.labels[row.label]
            trace = self.signals[half:].reshape(-1, *self.shape)[:, row.layer, 0, row.unit]
            values = label.values[half:] if label.where is None else np.where(label.where, label.values, 0)[half:]
            row.clamp = clamps(row.layer, row.unit, trace, values, label.binary)

    def findings(self, saturation: np.ndarray) -> Findings:
        order = {"found": 0, "near": 1, "none": 2, "echo": 3, "rare": 4}
        rows = sorted(self.rows.values(), key=lambda row: (order[row.status], -(row.held_out or 0)))
        effects = np.stack([self.effects[row.label] for row in rows]).reshape(-1, *self.shape).max(2)
        label, top = effects.argmax(0), effects.max(0)
        label = np.where(top > 0, label, -1)
        notes = [self.piece.note] if self.piece.note else []
        score = np.clip(np.where(top > 2, top - 2, top), 0, 1)
        return Findings(self.piece.name, len(self.piece), rows, label, score, top > 2, saturation, notes)


def _measure(label: Label) -> str:
    return "AUC" if label.binary else "rank correlation"


def _share(label: Label) -> float:
    on = label.values > 0 if label.binary else _positions(label)
    return float(np.mean(on))


def _positions(label: Label) -> np.ndarray:
    return np.ones(len(label.values), bool) if label.where is None else label.where


def _enough(label: Label) -> bool:
    """True if both halves of a label's defined positions have 100 characters and MIN_SPANS spans."""
    values = label.values[_positions(label)]
    half = len(values) // 2
    return half >= 100 and all(
        int((np.diff(part) != 0).sum()) >= 2 * MIN_SPANS
        for part in (values[:half].astype(float), values[half:].astype(float))
    )


def _groups(known: list[Label]) -> list[list[Label]]:
    """Labels that are defined everywhere as one group, every other label as a group of its own."""
    everywhere = [label for label in known if label.where is None]
    return [everywhere] * bool(everywhere) + [[label] for label in known if label.where is not None]


def _last_two(ids: np.ndarray, where: np.ndarray, values: np.ndarray, binary: bool) -> tuple[float, float]:
    """Effects, on both halves, of predicting the label by its mean on the first half given the last two characters."""
    pairs = (np.concatenate([ids[:1], ids[:-1]]).astype(np.int64) << 32 | ids)[where]
    _, which = np.unique(pairs, return_inverse=True)
    half, n = len(values) // 2, int(which.max()) + 1
    total = np.bincount(which[:half], values[:half], n)
    seen = np.bincount(which[:half], minlength=n)
    mean = float(values[:half].mean())
    guess = (total + mean) / (seen + 1)  # pairs never seen: the mean
    guess /= max(1.0, float(np.abs(guess).max()) / 1000)
    first, second = slice(half), slice(half, None)
    return abs(effect(guess[which[first]], values[first], binary)), abs(
        effect(guess[which[second]], values[second], binary)
    )
