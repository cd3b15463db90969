"""Which cell of a model keeps track of what: every unit of every layer against every label, on two parts of a text.

A unit is chosen on the first half alone and scored again on the second. It passes where both scores reach the threshold,
which is at least AUC 0.9 or rank correlation 0.7 and as much higher as keeps the share of chance finds (labels shifted
around the text) under 5 %, and where it tells more than the last two characters do: a unit that spikes at capitals only
echoes its input, and so do some units of a model that learned nothing. Layers and units count from 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import CharLMError
from ..lm import CharLM
from .clamp import Clamp, Clamps
from .excerpt import Excerpt, of_text
from .labels import Label, labels
from .ranking import Scores, effect, score, threshold
from .tracing import pieces

FLOOR = {True: 0.8, False: 0.7}  # least effect of a find by `binary`: 2 AUC - 1 at AUC 0.9, rank correlation
RATE = 0.05  # false-discovery rate
SHIFTS = 40
FEWEST = 5  # spans of a label that each part of the text must have
STATES = ("c", "h")
SATURATED = (0.1, 0.9)  # gates under and over


@dataclass
class Row:
    """What was found for a label; scores are AUC or rank correlation.

    share: of characters that have it, for a scalar label that can; status: found, none, echo (the last two characters
    tell as much) or rare (too little of it in the text, nothing is scored). layer, unit, state (c or h), sign (-1: the
    unit falls where the label rises), fit, held_out: of the unit that reaches the floor on the first half and whose tanh(c)
    moves most with the label there, or of the best fit where none does. threshold: that units had to reach, None for
    out of reach; control: best score of any unit in 19 of 20 shifts; last_two: score of the last two characters;
    passing: units, of all; false_rate: share of these that chance makes.
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
    threshold: float | None = None
    control: float | None = None
    last_two: float | None = None
    passing: int = 0
    false_rate: float | None = None
    clamp: Clamp | None = None


@dataclass
class Findings:
    """All that `find_cells` found. L layers, H units, 2 states (c, h).

    rows: one a label, finds first. label, score, passes: (L, H), of each cell the index in `rows` of the label that it
    tells best (-1 for none), that effect (lesser of both parts, 0 to 1), and whether it passes for it. saturation:
    (L, 2, 3, H), share of characters at which the gate i, f, o is under 0.1 and over 0.9.
    """

    text: str
    characters: int
    rows: list[Row]
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
        """The same as plain values for json.dumps; numbers that are not finite are None."""
        rows = [_plain(asdict(row) | {"ratio": row.clamp.ratio if row.clamp else None}) for row in self.rows]
        rule = {"auc": (1 + FLOOR[True]) / 2, "rank_correlation": FLOOR[False], "false_rate": RATE, "shifts": SHIFTS}
        passing = [{"layer": int(k), "unit": int(u)} for k, u in np.argwhere(self.passes)]
        counts = {"cells": self.passes.size, "passing": len(passing), "share": self.share}
        head = {"text": self.text, "characters": self.characters, "fit": self.characters // 2, "threshold": rule}
        return {**head, **counts, "rows": rows, "passing_cells": passing, "notes": self.notes}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def find_cells(model: CharLM, text: str | Excerpt, clamp: bool = True, shifts: int = SHIFTS, seed: int = 0) -> Findings:
    """Hold every cell of a model against every label of a text.

    text: some 10,000 characters at least, 100,000 are better, and none that the model learned. clamp: also hold each
    cell that was found and see where the loss rises. shifts: of the control. Memory: 4 L H bytes a character.
    """
    piece = of_text(model, text) if isinstance(text, str) else text
    if shifts < 1 / RATE:
        raise CharLMError(f"{shifts} shifts cannot tell a false-discovery rate of {RATE:.0%}: expected at least 20")
    if len(piece) < 200:
        raise CharLMError(f"{piece.name} has {len(piece)} characters, too few to score cells on: expected 200 at least")
    signals, saturation = _signals(model, piece)
    shape = (model.config.num_layers, len(STATES), model.config.hidden_size)
    board = _Board(piece, signals, shape, labels(piece.text), shifts, seed)
    if clamp:
        board.clamp(model)
    return board.findings(saturation)


def _signals(model: CharLM, piece: Excerpt) -> tuple[np.ndarray, np.ndarray]:
    """c and h of every unit, (N, L · 2 · H) float16, and the gates' saturation, (L, 2, 3, H)."""
    L, H = model.config.num_layers, model.config.hidden_size
    signals, counts, at = np.empty((len(piece), L, len(STATES), H), np.float16), np.zeros((L, 2, 3, H)), 0
    for part in pieces(model, piece.ids):
        here = slice(at, at + len(part))
        for k, state in enumerate(STATES):
            signals[here, :, k] = getattr(part, state).transpose(1, 0, 2).clip(-6e4, 6e4)
        sigmoids = part.gates[:, :, [0, 1, 3]]
        counts[:, 0] += (sigmoids < SATURATED[0]).sum(1)
        counts[:, 1] += (sigmoids > SATURATED[1]).sum(1)
        at += len(part)
    return signals.reshape(len(piece), -1), counts / len(piece)


class _Board:
    """Every label's row and every unit's effects. shape: (L, 2, H)."""

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
        self.rows = {label.name: Row(label.name, _measure(label), _share(label)) for label in known}
        self.both = {name: np.zeros(signals.shape[1]) for name in self.labels}
        for group in _groups([label for label in known if _enough(label)]):
            where = _positions(group[0])
            values = np.stack([label.values[where] for label in group]).astype(np.float32)
            binary = np.array([label.binary for label in group])
            scores = score(signals if where.all() else signals[where], values, binary, shifts, seed)
            for k, label in enumerate(group):
                self._judge(label, scores, k, _last_two(piece.ids, where, values[k], label.binary))

    def _judge(self, label: Label, scores: Scores, k: int, last_two: tuple[float, float]) -> None:
        """The row of a label. Its unit is chosen on the first half alone; then the second says whether it passes."""
        row, fit, both, control = self.rows[label.name], scores.fit[k], scores.both[k], scores.control[:, k]
        level, false = threshold(both, control, FLOOR[label.binary], RATE)
        good, echo = both >= level, both <= last_two[1]
        promising = fit >= FLOOR[label.binary]
        telling = promising & (fit > last_two[0])
        best = self._best(label, fit, telling if telling.any() else promising)
        layer, state, unit = np.unravel_index(best, self.shape)
        row.layer, row.unit, row.state, row.sign = int(layer), int(unit), STATES[state], int(scores.sign[k, best])

        def shown(value: float) -> float:
            return float((1 + value) / 2 if label.binary else value)

        row.fit, row.held_out, row.last_two = (shown(v) for v in (fit[best], scores.held[k, best], last_two[1]))
        row.threshold = shown(level) if np.isfinite(level) else None
        row.control = shown(np.quantile(control.max(1), 0.95))
        row.status = "none" if not good[best] else "echo" if echo[best] else "found"
        row.passing, row.false_rate = int((good & ~echo).sum()), false
        self.both[label.name] = np.where(good & ~echo, 2 + both, both)

    def _best(self, label: Label, fit: np.ndarray, promising: np.ndarray) -> int:
        """Of the promising units the one whose tanh(c) moves most with the label; where there is none, the best fit.

        Many a cell ranks well deep in tanh's flat end, where the network sees nothing of it. Only the first half is used.
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

    def clamp(self, model: CharLM) -> None:
        """Hold the best cell of each find, on the second half of the text."""
        found = [row for row in self.rows.values() if row.status == "found"]
        half = len(self.piece) // 2
        clamps = Clamps(model, self.piece.ids[half:]) if found else None
        for row in found:
            label = self.labels[row.label]
            trace = self.signals[half:].reshape(-1, *self.shape)[:, row.layer, 0, row.unit]
            values = label.values[half:] if label.where is None else np.where(label.where, label.values, 0)[half:]
            row.clamp = clamps(row.layer, row.unit, trace, values, label.binary)

    def findings(self, saturation: np.ndarray) -> Findings:
        order = {"found": 0, "none": 1, "echo": 2, "rare": 3}
        rows = sorted(self.rows.values(), key=lambda row: (order[row.status], -(row.held_out or 0)))
        effects = np.stack([self.both[row.label] for row in rows]).reshape(-1, *self.shape).max(2)
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
    """Whether both halves of where a label means anything have spans of it and enough characters to rank."""
    values = label.values[_positions(label)]
    half = len(values) // 2
    return half >= 100 and all(
        int((np.diff(part) != 0).sum()) >= 2 * FEWEST
        for part in (values[:half].astype(float), values[half:].astype(float))
    )


def _groups(known: list[Label]) -> list[list[Label]]:
    """Labels that mean something everywhere together, every other one alone."""
    everywhere = [label for label in known if label.where is None]
    return [everywhere] * bool(everywhere) + [[label] for label in known if label.where is not None]


def _last_two(ids: np.ndarray, where: np.ndarray, values: np.ndarray, binary: bool) -> tuple[float, float]:
    """The effect, on the first half and on the second, of what the last two characters made of the label on the first."""
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
