"""`train`: starts or resumes a run, stops it at a signal, and says how it ended."""

from __future__ import annotations

import shlex
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CharLMError, command
from ..lm import CharLM
from .distributed import Ranks
from .progress import Reporter
from .setup import Request, prepared
from .trainer import INTERRUPTED, Trainer


class Interrupted(CharLMError):  # noqa: N818 (no error: the run is saved)
    """A signal stopped the run. It was saved before."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a run.

    Attributes:
        folder: of the run
        best, last: checkpoints of the best and of the last iteration
        iteration: number of iterations
        nats: best validation loss per `unit`
        seconds: of training
        reason: why the run stopped
        unit: `character` or `byte`
    """

    folder: Path
    best: Path
    last: Path
    iteration: int
    nats: float
    seconds: float
    reason: str
    unit: str = "character"

    def load(self) -> CharLM:
        """The best model of the run."""
        return CharLM.load(self.best)


def train(
    corpus: str | None = None,
    checkpoint_dir: str | Path | None = None,
    *,
    preset: str = "char-rnn",
    resume: bool = False,
    overwrite: bool = False,
    init_from: str | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    **options: Any,
) -> TrainResult:
    """Train a character model.

    Args:
        corpus: file, folder or name of a corpus; None with `resume` for the run's own. The text of a pipe, or of standard
            input (`-`), is kept in the folder of the run
        checkpoint_dir: folder of the run, which no other training may be in; by default the first free one of `runs/NAME`,
            `runs/NAME-2`, …
        preset: key of `config.PRESETS`
        resume: continue the run in `checkpoint_dir`
        overwrite: delete a run that is in `checkpoint_dir`
        init_from: checkpoint to take the initial weights from
        device: `auto`, `cpu` or `cuda`
        reporter: receives the events of the run; None for no output
        options: fields of `config.TrainConfig`

    Raises:
        CharLMError: an argument is wrong, the corpus cannot be read, the disk is full, or the loss diverges.
        Interrupted: a signal stopped the run; it is saved.
    """
    ranks = Ranks(device)
    reporter = reporter if reporter is not None and ranks.is_first else Reporter()
    request = Request(corpus, checkpoint_dir, preset, resume, overwrite, init_from, options)
    trainer = None
    try:
        with prepared(request, ranks, reporter) as trainer, _stop_on_signal(trainer):
            reason = trainer.run()
    except RuntimeError as error:
        if not ranks.is_peer_failure(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise CharLMError(
            "another process of this run ended or cannot be reached; what the last save holds is safe: start all of "
            "them again with --resume"
        ) from error
    finally:
        if trainer is not None:
            trainer.net = trainer.model
        ranks.close()
    return _result(trainer, reason)


def _result(trainer: Trainer, reason: str) -> TrainResult:
    progress, folder = trainer.progress, trainer.folder
    last = folder / "last.safetensors"
    if reason == INTERRUPTED:
        failure = trainer.reporter.error
        what = "interrupted" if failure is None else f"the output failed ({_why(failure)}): stopped"
        raise Interrupted(
            f"{what} at iteration {progress.iteration:,}, saved in {last}; go on with: "
            f"{command()} train --resume --checkpoint-dir {shlex.quote(str(folder))}"
        )
    nats = progress.best_nats if progress.best_nats is not None else float("nan")
    unit = trainer.corpus.vocab.unit
    return TrainResult(
        folder, folder / "best.safetensors", last, progress.iteration, nats, progress.seconds, reason, unit
    )


def _why(error: BaseException) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "its reader has gone"


@contextmanager
def _stop_on_signal(trainer: Trainer):
    """Handle SIGINT, SIGTERM and SIGHUP: the iteration is finished and the run saved; a second SIGINT or SIGTERM ends it.

    A SIGHUP that is ignored, as under nohup, stays so. A second one counts as the first, since the shell and the system both
    send one when a terminal is closed.

    With several processes a second signal is ignored: each gets one from the terminal and one from torchrun.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Callable | int | None] = {}
    seen: set[int] = set()

    def handle(number, frame) -> None:
        if number in seen and number in (signal.SIGINT, signal.SIGTERM) and trainer.ranks.size == 1:
            raise KeyboardInterrupt
        seen.add(number)
        trainer.stop_requested = True

    for number in _stop_signals():
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _stop_signals() -> list[signal.Signals]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    return numbers
