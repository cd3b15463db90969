"""How well a model predicts a text: the loss of every character, their sum, and what that means in the usual units."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .data.splits import Held
from .data.vocab import Vocabulary
from .model import CharModel

STEPS = 256  # steps per call: bounds memory, changes no result


@torch.no_grad()
def losses(model: CharModel, held: Held) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (-log p (T, S) in nats, which of them count (T, S) bool), on the model's device; its mode must be eval."""
    device = model.out.weight.device
    state = model.zero_state(len(held.origins))
    for x, y, counted in held.chunks(STEPS):
        scores, state = model(torch.from_numpy(x).to(device), state)
        nats = nn.functional.cross_entropy(
            scores.flatten(0, 1), torch.from_numpy(y).to(device).flatten(), reduction="none"
        )
        yield nats.view(y.shape), torch.from_numpy(counted).to(device)


def total_nats(model: CharModel, held: Held) -> tuple[float, int]:
    """The sum of -log p over the predictions that count, and their number. Leaves the model in its mode."""
    was_training = model.training
    model.eval()
    total = 0.0
    for nats, counted in losses(model, held):
        total += float(nats.mul(counted).sum(dtype=torch.float64))
    model.train(was_training)
    return total, len(held)


def nats_by_position(model: CharModel, held: Held) -> np.ndarray:
    """-log p of each character that counts, by its position in held.ids, (len(held.ids),) float32; else NaN."""
    out = np.full(len(held.ids), np.nan, np.float32)
    first = 0
    for nats, counted in losses(model, held):
        steps = np.arange(first, first + len(nats))[:, None]
        positions = (steps + held.origins + 1) % len(held.ids)
        chosen = counted.cpu().numpy()
        out[positions[chosen]] = nats.cpu().numpy()[chosen]
        first += len(nats)
    return out


@dataclass(frozen=True)
class Evaluation:
    """The loss on a text. nats: of all of it together; characters, bytes (in UTF-8): how many it has.

    A byte model's loss is that of characters too, so that it can be held beside other models.
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
        """How many equally likely characters the next one is drawn from, so to speak."""
        return math.exp(self.nats_per_char)


def targets(held: Held) -> np.ndarray:
    """Positions in held.ids of every prediction that counts, (len(held),), stream by stream."""
    spans = [
        np.arange(origin + skip + 1, origin + length + 1)
        for origin, skip, length in zip(held.origins, held.skip, held.length, strict=True)
    ]
    return np.concatenate(spans) % len(held.ids)


def evaluate(model: CharModel, vocab: Vocabulary, held: Held) -> Evaluation:
    """The model's loss on what is held."""
    nats, symbols = total_nats(model, held)
    text = vocab.decode(held.ids[targets(held)])
    if vocab.bytes:
        begun = sum(byte & 0xC0 != 0x80 for byte in text.encode("latin-1"))  # bytes that begin a character in UTF-8
        return Evaluation(nats, begun or symbols, symbols)
    return Evaluation(nats, symbols, len(text.encode("utf-8", "surrogatepass")))
