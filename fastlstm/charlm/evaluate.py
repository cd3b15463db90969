"""The loss of a model on a text: of every character, in total, and in the usual units."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .data.splits import EvalText
from .data.vocab import Vocabulary
from .model import CharModel, not_finite

STEPS_PER_CALL = 256  # bounds memory; the result does not depend on it


@torch.no_grad()
def losses(model: CharModel, eval_text: EvalText) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (-log p (T, S) in nats, scored (T, S) bool) on the model's device; the model must be in eval mode."""
    device = model.out.weight.device
    state = model.zero_state(len(eval_text.origins))
    for x, y, counted in eval_text.chunks(STEPS_PER_CALL):
        scores, state = model(torch.from_numpy(x).to(device), state)
        nats = nn.functional.cross_entropy(
            scores.flatten(0, 1), torch.from_numpy(y).to(device).flatten(), reduction="none"
        )
        yield nats.view(y.shape), torch.from_numpy(counted).to(device)


def total_nats(model: CharModel, eval_text: EvalText) -> tuple[float, int]:
    """The sum of -log p over the scored predictions, in nats, and their number. The model keeps its mode."""
    was_training = model.training
    model.eval()
    total = 0.0
    for nats, counted in losses(model, eval_text):
        total += float(nats.mul(counted).sum(dtype=torch.float64))
    model.train(was_training)
    return total, len(eval_text)


def nats_by_position(model: CharModel, eval_text: EvalText) -> np.ndarray:
    """-log p of each character of `eval_text.ids`, (N,) float32 in nats; NaN where it is not scored."""
    out = np.full(len(eval_text.ids), np.nan, np.float32)
    first = 0
    for nats, counted in losses(model, eval_text):
        steps = np.arange(first, first + len(nats))[:, None]
        positions = (steps + eval_text.origins + 1) % len(eval_text.ids)
        chosen = counted.cpu().numpy()
        out[positions[chosen]] = nats.cpu().numpy()[chosen]
        first += len(nats)
    return out


def perplexity(nats: float) -> float:
    """exp of a loss in nats; infinite where that is past a float."""
    return math.exp(nats) if nats < 709 else math.inf if nats == nats else math.nan


@dataclass(frozen=True)
class Evaluation:
    """The loss on a text.

    The units are comparable between models: a byte model's loss is also given per character.

    Attributes:
        nats: total loss
        characters: length of the text
        bytes: its length in UTF-8
    """

    nats: float
    characters: int
    bytes: int

    @property
    def nats_per_char(self) -> float:
        return self.nats / self.characters

    @property
    def bits_per_char(self) -> float:
        return self.nats_per_char / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """exp of the loss per character; infinite where that is past a float."""
        return perplexity(self.nats_per_char)


def targets(eval_text: EvalText) -> np.ndarray:
    """Positions in `eval_text.ids` of all scored characters, (len(eval_text),), stream by stream."""
    spans = [
        np.arange(origin + skip + 1, origin + length + 1)
        for origin, skip, length in zip(eval_text.origins, eval_text.skip, eval_text.length, strict=True)
    ]
    return np.concatenate(spans) % len(eval_text.ids)


def evaluate(model: CharModel, vocab: Vocabulary, eval_text: EvalText) -> Evaluation:
    """The model's loss on a text. Raises CharLMError if it is not a finite number."""
    nats, symbols = total_nats(model, eval_text)
    if not math.isfinite(nats):
        raise not_finite(model)
    text = vocab.decode(eval_text.ids[targets(eval_text)])
    if vocab.bytes:
        begun = sum(byte & 0xC0 != 0x80 for byte in text.encode("latin-1"))  # bytes that begin a character in UTF-8
        return Evaluation(nats, begun or symbols, symbols)
    return Evaluation(nats, symbols, len(text.encode("utf-8", "surrogatepass")))
