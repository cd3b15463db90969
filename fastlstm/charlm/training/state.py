"""State of a training run: the counters that travel in the checkpoint, and what others may read of a trainer.

Reporters (progress.py) and checkpoints (resume.py) are typed against the protocol `TrainingRun`, so that neither imports
trainer.py, which imports both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..config import TrainConfig
from ..data.corpus import Corpus
from ..errors import CharLMError
from ..model import CharModel, State
from .distributed import Ranks
from .jsonl import JsonLines
from .optim import Optimiser


@dataclass
class Progress:
    """Counters of a run. The checkpoint holds all of them, and a resumed run goes on from them."""

    iteration: int = 0
    loss_count: int = 0  # iterations whose losses are in Trainer.loss_sum
    lowest_loss: float | None = None  # of the lines of the log
    train_nats: float | None = None  # as of the last line of the log
    val_nats: float | None = None
    best_nats: float | None = None
    stale: int = 0  # evaluations since the best one
    seconds: float = 0.0  # of training, without evaluation and saving
    log_size: int = 0  # bytes of log.jsonl and samples.jsonl that belong to it
    samples_size: int = 0

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Progress:
        """The counters of a checkpoint; those that another version wrote are left out. Raises CharLMError."""
        known = {item.name for item in fields(cls)}
        progress = cls(**{name: value for name, value in record.items() if name in known})
        for item in fields(cls):
            value = getattr(progress, item.name)
            if type(value) not in _KINDS[item.type]:
                raise CharLMError(f"its counter {item.name} is {value!r}, expected {item.type}")
        return progress


_KINDS = {"int": (int,), "float": (float, int), "float | None": (float, int, type(None))}


class TrainingRun(Protocol):
    """A run as reporters and checkpoints see it; `Trainer` is one."""

    config: TrainConfig
    corpus: Corpus
    folder: Path
    ranks: Ranks
    model: CharModel
    optimiser: Optimiser
    state: State  # hidden and cell states carried between batches, (layers, B, H) each
    loss_sum: Tensor  # (), of the iterations since the last line of the log
    progress: Progress
    log: JsonLines
    samples: JsonLines
    total_iterations: int  # iterations of the whole run
    stop_reason: str  # why the run stops after this iteration, empty while it goes on

    @property
    def epoch(self) -> float: ...

    @property
    def fraction_done(self) -> float: ...
