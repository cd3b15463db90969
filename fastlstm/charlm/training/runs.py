"""Starting and resuming a run: corpus, folder, signals, and the one call that does it all."""

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
from ..data.corpus import Reading, find, load
from ..errors import CharLMError, command
from ..lm import CharLM
from .distributed import Ranks
from .progress import Reporter
from .resume import check_corpus, restore
from .trainer import Trainer


class Interrupted(CharLMError):  # noqa: N818 (no error: the run is saved)
    """A signal stopped the run, after it was saved."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. nats: the best validation loss, a character or byte (`unit`); reason: why it stopped."""

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

    corpus: file, folder or built-in name; None with `resume` takes the run's own. checkpoint_dir: the run's folder,
    `runs/NAME` by default. overwrite: throw away a run that is there. init_from: start with this checkpoint's weights.
    device: auto, cpu, cuda. reporter: hears what happens, None for silence. options: fields of `config.TrainConfig`.

    Raises CharLMError for anything the caller can mend, Interrupted after a signal (the run is saved).
    """
    ranks = Ranks(device)
    reporter = reporter if reporter is not None and ranks.first else Reporter()
    trainer = None
    try:
        trainer = _ready(ranks, reporter, corpus, checkpoint_dir, preset, resume, overwrite, init_from, options)
        with _signals(trainer):
            reason = trainer.run()
    except RuntimeError as error:
        if not ranks.lost(error):
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


def _ready(
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
    """A run where it begins or goes on, its text read and its folder made. Arguments as of `train`."""
    folder = _folder(corpus, checkpoint_dir, resume)
    saved = _saved_run(folder) if resume else None
    config, name = _settle(corpus, preset, options, saved)
    start = checkpoint.read(checkpoint.locate(init_from)) if init_from and saved is None else None
    if start is not None:
        config = _with_sizes(config, start, options)
    reading = Reading(config.encoding, config.bytes, config.lines, unique=config.split == "lines")
    found = find(name, reading)  # before there is a folder for the run, which may bear the corpus's name
    ranks.wait()  # nobody looks for a run there after the first process has begun one
    _prepare(folder, resume, overwrite, ranks)
    text = load(name, reading, start.vocab if start else None, folder, found)
    ranks.agree("corpus", text.sha256)
    ranks.agree("configuration", configs.to_json(config))
    for note in text.notes:
        reporter.note(note)
    trainer = Trainer(config, text, folder, ranks, reporter, start.weights if start else None)
    if saved is not None:
        check_corpus(saved, text)
        restore(trainer, saved, reporter)
        if trainer.progress.iteration >= trainer.total:
            epochs = config.max_epochs
            reporter.note(f"all {epochs} epochs are done: for more, --max-epochs with a number above {epochs}")
    return (
        trainer  # `saved` and `start` go: their tensors are views of the file, whose space is free again without them
    )


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


def _settle(
    corpus: str | None, preset: str, options: dict[str, Any], saved: Checkpoint | None
) -> tuple[TrainConfig, str]:
    """The configuration and the name of the corpus."""
    if saved is None:
        if corpus is None:
            raise CharLMError(f"name a corpus to learn: a file, a folder or one of {', '.join(corpora.BUILTIN)}")
        config = configs.make(preset, **options)
        return config.settle(corpora.is_list(corpus)), corpus
    given = {**configs.PRESETS.get(preset, {}), **options}
    config = configs.check_resumed(configs.from_json(saved.config), given)
    return config, corpus or saved.corpus["name"]


def _with_sizes(config: TrainConfig, start: Checkpoint, options: dict[str, Any]) -> TrainConfig:
    """The configuration with the sizes of the weights it starts from."""
    sizes = {name: start.config[name] for name in ("hidden_size", "num_layers", "embedding_dim", "bytes")}
    for name, value in sizes.items():
        if options.get(name, value) != value:
            flag = "--" + name.replace("_", "-")
            raise CharLMError(f"--init-from has {flag} {value}, not {options[name]}: leave {flag} out")
    return configs.replace(config, **sizes)


def _prepare(folder: Path, resume: bool, overwrite: bool, ranks: Ranks) -> None:
    if (folder / "last.safetensors").exists() and not resume and not overwrite:
        raise CharLMError(
            f"{folder} already holds a run: go on with it by --resume, choose another --checkpoint-dir, or throw it "
            "away with --overwrite"
        )
    ranks.wait()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite and not resume and ranks.first:
            for name in ("last.safetensors", "best.safetensors", "log.jsonl", "samples.jsonl"):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise CharLMError(
            f"cannot use the folder {folder}: {error.strerror or error}; choose another --checkpoint-dir"
        ) from error


@contextmanager
def _signals(trainer: Trainer):
    """The first interrupt or termination lets the iteration finish and saves; a second one ends at once.

    Under torchrun a signal comes from the terminal and from torchrun, so there the second one changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Callable | int | None] = {}

    def handle(number, frame) -> None:
        if trainer.signalled and trainer.ranks.size == 1:
            raise KeyboardInterrupt
        trainer.signalled = True

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
