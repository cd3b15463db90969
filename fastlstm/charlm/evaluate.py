"""How well a model predicts a text."""

from __future__ import annotations

import torch
from torch import nn

from .model import CharModel
from .splits import Held

STEPS = 256  # steps per call: bounds memory, changes no result


@torch.no_grad()
def total_nats(model: CharModel, held: Held) -> tuple[float, int]:
    """The sum of -log p over the predictions that count, in nats, and their number. Leaves the model in its mode."""
    if len(held.origins) == 0:
        return 0.0, 0
    was_training = model.training
    model.eval()
    device = model.out.weight.device
    state = model.zero_state(len(held.origins))
    sums = torch.zeros((), dtype=torch.float64, device=device)
    for x, y, counted in held.chunks(STEPS):
        scores, state = model(torch.from_numpy(x).to(device), state)
        nats = nn.functional.cross_entropy(
            scores.flatten(0, 1), torch.from_numpy(y).to(device).flatten(), reduction="none"
        )
        sums += nats.view(y.shape).mul_(torch.from_numpy(counted).to(device)).sum(dtype=torch.float64)
    model.train(was_training)
    return float(sums), len(held)
