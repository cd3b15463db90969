"""Text that a model can learn something of, and the options of a model that learns it in a second."""

from __future__ import annotations

import random

SMALL = {"hidden_size": 12, "num_layers": 2, "batch_size": 4, "seq_length": 20, "max_epochs": 1, "log_every": 5}


def babble(characters: int, seed: int = 0) -> str:
    """Text that a model can learn something of: sentences of a few words."""
    rng = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs", "run"]
    text = ""
    while len(text) < characters:
        text += " ".join(rng.choice(words) for _ in range(rng.randint(3, 9))).capitalize() + rng.choice(".!?") + "\n"
    return text[:characters]
