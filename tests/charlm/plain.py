"""The loss of a text written as plainly as possible."""

from __future__ import annotations

import numpy as np
import torch


def nats_alone(lm, text):
    """Nats of each character of a text, one model call a prefix: slow and plain."""
    ids = torch.from_numpy(lm.vocab.encode(lm.vocab.from_text(text)).astype(np.int64))[:, None]
    with torch.no_grad():
        scores, _ = lm.model(ids[:-1])
    return torch.nn.functional.cross_entropy(scores[:, 0], ids[1:, 0], reduction="none").numpy()
