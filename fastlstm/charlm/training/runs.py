"""`train`: starts or resumes a run, with its corpus, its folder and its signal handlers."""

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

from .. import checkpoint
from .. import config as configs
from ..checkpoint import Checkpoint
from ..config import TrainConfig
from ..data import corpora
from ..data.corpus import CorpusOptions, find, load
from ..errors import CharLMError, command
from ..lm import CharLM
from .distributed import Ranks
from .progress import Reporter
from .resume import check_corpus, restore
from .trainer import Trainer


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
        corpus: file, folder or name of a corpus; None with `resume` for the run's own
        checkpoint_dir: folder of the run; by default `runs/NAME`
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
    trainer = None
    try:
        trainer = _make_trainer(ranks, reporter, corpus, checkpoint_dir, preset, resume, overwrite, init_from, options)
        with _stop_on_signal(trainer):
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


def _make_trainer(
    ranks: Ranks,
    reporter: Reporter,
    corpus: str | None,
    checkpoint_dir: str | Path | None,
    preset: str,
    resume: bool,
    overwrite: bool,
    init_from: str | None,
    options: dict[str, Any],
) -> Trainer:
    """A trainer at the start or at the saved iteration of a run; reads the corpus, makes the folder. Arguments as `train`."""
    folder = _folder(corpus, checkpoint_dir, resume)
    saved = _saved_run(folder) if resume else None
    config, name = _config_and_corpus(corpus, preset, options, saved)
    start = checkpoint.read(checkpoint.locate(init_from)) if init_from and saved is None else None
    if start is not None:
        config = _with_sizes_of(config, start, options)
    corpus_options = CorpusOptions(config.encoding, config.bytes, config.lines, unique=config.split == "lines")
    # Resolve the name before the folder of the run exists, because it may have the name of the corpus.
    source_and_note = find(name, corpus_options)
    ranks.barrier()  # all processes have looked for a saved run before the first one makes the folder
    _prepare_folder(folder, resume, overwrite, ranks)
    text = load(name, corpus_options, start.vocab if start else None, folder, source_and_note)
    ranks.check_equal("corpus", text.sha256)
    ranks.check_equal("configuration", configs.to_json(config))
    for note in text.notes:
        reporter.note(note)
    trainer = Trainer(config, text, folder, ranks, reporter, start.weights if start else None)
    if saved is not None:
        check_corpus(saved, text)
        restore(trainer, saved, reporter)
        if trainer.progress.iteration >= trainer.total_iterations:
            epochs = config.max_epochs
            reporter.note(f"all {epochs} epochs are done: for more, --max-epochs with a number above {epochs}")
    # `saved` and `start` must not outlive this function: their tensors map the old file and keep its disk space in use.
    return trainer


def _result(trainer: Trainer, reason: str) -> TrainResult:
    progress, folder = trainer.progress, trainer.folder
    last = folder / "last.safetensors"
    if reason == "interrupted":
        raise Interrupted(
            f"interrupted at iteration {progress.iteration:,}, saved in {last}; go on with: "
            f"{command()} train --resume --checkpoint-dir {shlex.quote(str(folder))}"
        )
    nats = progress.best_nats if progress.best_nats is not None else float("nan")
    unit = trainer.corpus.vocab.unit
    return TrainResult(
        folder, folder / "best.safetensors", last, progress.iteration, nats, progress.seconds, reason, unit
    )


def _folder(corpus: str | None, checkpoint_dir: str | Path | None, resume: bool) -> Path:
    if checkpoint_dir is not None:
        return Path(checkpoint_dir)
    if corpus is None:
        raise CharLMError("name a corpus to learn, or with --resume the --checkpoint-dir of a run")
    folder = Path("runs") / Path(corpus).resolve().stem
    if resume:
        return folder
    number, free = 1, folder
    while (free / "last.safetensors").exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _saved_run(folder: Path) -> Checkpoint:
    path = folder / "last.safetensors"
    if not path.exists():
        raise CharLMError(f"there is no run to resume in {folder}: it holds no last.safetensors")
    saved = checkpoint.read(path, with_train=True)
    if not saved.run:
        raise CharLMError(f"{path} holds a model but no run: use it with --init-from instead of --resume")
    return saved


def _config_and_corpus(
    corpus: str | None, preset: str, options: dict[str, Any], saved: Checkpoint | None
) -> tuple[TrainConfig, str]:
    """The configuration and the name of the corpus."""
    if saved is None:
        if corpus is None:
            raise CharLMError(f"name a corpus to learn: a file, a folder or one of {', '.join(corpora.BUILTIN)}")
        config = configs.make(preset, **options)
        return config.settle(corpora.is_line_corpus(corpus)), corpus
    requested = {**configs.PRESETS.get(preset, {}), **options}
    config = configs.check_resumed(configs.from_json(saved.config), requested)
    return config, corpus or saved.corpus["name"]


def _with_sizes_of(config: TrainConfig, start: Checkpoint, options: dict[str, Any]) -> TrainConfig:
    """A copy of the configuration with the sizes of the checkpoint that the weights come from."""
    sizes = {name: start.config[name] for name in ("hidden_size", "num_layers", "embedding_dim", "bytes")}
    for name, value in sizes.items():
        if options.get(name, value) != value:
            flag = "--" + name.replace("_", "-")
            raise CharLMError(f"--init-from has {flag} {value}, not {options[name]}: leave {flag} out")
    return configs.replace(config, **sizes)


def _prepare_folder(folder: Path, resume: bool, overwrite: bool, ranks: Ranks) -> None:
    if (folder / "last.safetensors").exists() and not resume and not overwrite:
        raise CharLMError(
            f"{folder} already holds a run: go on with it by --resume, choose another --checkpoint-dir, or throw it "
            "away with --overwrite"
        )
    ranks.barrier()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite and not resume and ranks.is_first:
            for name in ("last.safetensors", "best.safetensors", "log.jsonl", "samples.jsonl"):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise CharLMError(
            f"cannot use the folder {folder}: {error.strerror or error}; choose another --checkpoint-dir"
        ) from error


@contextmanager
def _stop_on_signal(trainer: Trainer):
    """Handle SIGINT and SIGTERM: the first lets the iteration finish and saves the run, a second one stops at once.

    With several processes a second signal is ignored: each gets one from the terminal and one from torchrun.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Callable | int | None] = {}

    def handle(number, frame) -> None:
        if trainer.stop_requested and trainer.ranks.size == 1:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
