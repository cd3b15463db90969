"""From what the user asks for to a trainer: the folder of the run, its configuration, its text, its first weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checkpoint
from .. import config as configs
from ..checkpoint import Checkpoint
from ..config import TrainConfig
from ..data import corpora, pipes
from ..data.corpus import CorpusOptions, SourceAndNote, find, load
from ..data.recorded import find_recorded
from ..errors import CharLMError
from .distributed import Ranks
from .folder import RunFolder, holds_run, take, take_free
from .progress import Reporter
from .resume import check_corpus, restore
from .trainer import Trainer

RECORDS = ("last.safetensors", "best.safetensors", "log.jsonl", "samples.jsonl")


@dataclass(frozen=True)
class Request:
    """The arguments of `train`."""

    corpus: str | None
    checkpoint_dir: str | Path | None
    preset: str
    resume: bool
    overwrite: bool
    init_from: str | None
    options: dict[str, Any]


@contextmanager
def prepared(request: Request, ranks: Ranks, reporter: Reporter) -> Iterator[Trainer]:
    """A trainer at the start or at the saved iteration of a run. Its folder is held inside the context.

    Raises:
        CharLMError: as for `train`.
    """
    if request.resume:
        with _held(_resumed_folder(request), ranks, reporter) as folder:
            yield _resumed(request, folder, ranks, reporter)
        return
    config, start = _new_config(request)
    options = _corpus_options(config)
    piped = pipes.is_pipe(request.corpus)
    # Resolve the name before the folder of the run exists, because it may have the name of the corpus.
    source_and_note = None if piped else find(request.corpus, options)
    with _held(lambda: _new_folder(request), ranks, reporter) as folder:
        name = request.corpus
        if piped:
            name = ranks.from_first(lambda: _kept(request.corpus, folder))
            source_and_note = find(name, options)
        vocab = start.vocab if start else None
        text = load(name, options, vocab, folder, source_and_note, config.unknown)
        _agree(ranks, config, text.sha256)
        for note in text.notes:
            reporter.note(note)
        trainer = Trainer(config, text, folder, ranks, reporter, start.weights if start else None)
        if request.overwrite and ranks.is_first:
            _remove_records(folder)
        del start  # its tensors map the file and keep its disk space in use
        yield trainer


def _resumed(request: Request, folder: Path, ranks: Ranks, reporter: Reporter) -> Trainer:
    saved = _saved_run(folder)
    requested = {**configs.PRESETS.get(request.preset, {}), **request.options}
    config = configs.check_resumed(configs.from_json(saved.config), requested)
    options = _corpus_options(config)
    name, source_and_note = _resumed_source(request.corpus, saved, folder, options)
    # With "add" a text with other characters is read too, and `check_corpus` says that it is another one.
    unknown = "skip" if config.unknown == "skip" else "add"
    text = load(name, options, saved.vocab, folder, source_and_note, unknown)
    _agree(ranks, config, text.sha256)
    check_corpus(saved, text)
    for note in text.notes:
        reporter.note(note)
    trainer = Trainer(config, text, folder, ranks, reporter)
    restore(trainer, saved, reporter)
    if trainer.progress.iteration >= trainer.total_iterations:
        epochs = config.max_epochs
        reporter.note(f"all {epochs} epochs are done: for more, --max-epochs with a number above {epochs}")
    # `saved` must not outlive this function: its tensors map the old file and keep its disk space in use.
    return trainer


def _corpus_options(config: TrainConfig) -> CorpusOptions:
    return CorpusOptions(config.encoding, config.bytes, config.lines, unique=config.split == "lines")


def _agree(ranks: Ranks, config: TrainConfig, sha256: str) -> None:
    """Raises CharLMError unless all processes have the same text and configuration."""
    ranks.check_equal("corpus", sha256)
    ranks.check_equal("configuration", configs.to_json(config))


@contextmanager
def _held(make: Any, ranks: Ranks, reporter: Reporter) -> Iterator[Path]:
    """The folder that `make()` takes in the first process; it is given up when the context ends."""
    taken: list[RunFolder] = []

    def call() -> str:
        taken.append(make())
        return str(taken[0].path)

    try:
        folder = Path(ranks.from_first(call))
        if not ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)  # on a machine of its own; the encoded corpus is kept there
        for note in (one.note for one in taken if one.note):
            reporter.note(note)
        yield folder
    finally:
        for one in taken:
            one.release()


def _new_folder(request: Request) -> RunFolder:
    """Take the folder of a new run: the one that was named, or the first free one of `runs/NAME`, `runs/NAME-2`, …"""
    if request.checkpoint_dir is None:
        return take_free(Path("runs") / _title(request.corpus))
    taken = take(Path(request.checkpoint_dir))
    if holds_run(taken.path) and not request.overwrite:
        taken.release()
        raise CharLMError(
            f"{taken.path} already holds a run: go on with it by --resume, choose another --checkpoint-dir, or throw it "
            "away with --overwrite"
        )
    return taken


def _resumed_folder(request: Request) -> Any:
    """A function that takes the folder of the run to go on with."""
    if request.checkpoint_dir is not None:
        folder = Path(request.checkpoint_dir)
    elif request.corpus is not None:
        folder = Path("runs") / _title(request.corpus)
    else:
        raise CharLMError("name a corpus to learn, or with --resume the --checkpoint-dir of a run")

    def call() -> RunFolder:
        if not holds_run(folder):
            raise CharLMError(f"there is no run to resume in {folder}: it holds no last.safetensors")
        return take(folder)

    return call


def _title(corpus: str) -> str:
    """The name of a corpus for the folder of its run."""
    return pipes.title(corpus) if pipes.is_pipe(corpus) else Path(corpus).resolve().stem or "corpus"


def _saved_run(folder: Path) -> Checkpoint:
    path = folder / "last.safetensors"
    saved = checkpoint.read(path, with_train=True)
    if not saved.run:
        raise CharLMError(f"{path} holds a model but no run: use it with --init-from instead of --resume")
    return saved


def _new_config(request: Request) -> tuple[TrainConfig, Checkpoint | None]:
    """The configuration of a new run, and the checkpoint that its first weights come from."""
    if request.corpus is None:
        raise CharLMError(f"name a corpus to learn: a file, a folder or one of {', '.join(corpora.BUILTIN)}")
    if "unknown" in request.options and request.init_from is None:
        raise CharLMError("--unknown says what becomes of characters that the model of --init-from never saw: add that")
    config = configs.make(request.preset, **request.options).settle(corpora.is_line_corpus(request.corpus))
    if request.init_from is None:
        return config, None
    start = checkpoint.read(checkpoint.locate(request.init_from))
    return _with_sizes_of(config, start, request.options), start


def _with_sizes_of(config: TrainConfig, start: Checkpoint, options: dict[str, Any]) -> TrainConfig:
    """A copy of the configuration with the sizes of the checkpoint that the weights come from."""
    begun = configs.from_json(start.config)
    sizes = {name: getattr(begun, name) for name in ("hidden_size", "num_layers", "embedding_dim", "bytes")}
    for name, value in sizes.items():
        if options.get(name, value) != value:
            flag = "--" + name.replace("_", "-")
            raise CharLMError(f"--init-from has {flag} {value}, not {options[name]}: leave {flag} out")
    return configs.replace(config, **sizes)


def _resumed_source(
    corpus: str | None, saved: Checkpoint, folder: Path, options: CorpusOptions
) -> tuple[str, SourceAndNote]:
    """Name and source of the text of a run to go on with. corpus: as named by the user, None for the run's own."""
    if corpus is None:
        try:
            return saved.corpus["name"], find_recorded(saved.corpus, folder, options)
        except CharLMError as error:
            raise CharLMError(f"{error}: train TEXT --resume --checkpoint-dir {folder}") from error
    if pipes.is_pipe(corpus):
        raise CharLMError(f"a run is resumed with the text in its folder: leave {corpus} out, name --checkpoint-dir")
    return corpus, find(corpus, options)


def _kept(name: str, folder: Path) -> str:
    """Copy a text that can be read once into the folder of the run, where --resume finds it; gives the copy's path."""
    path = folder / pipes.KEPT
    checkpoint.write_atomic(path, pipes.chunks(name))
    return str(path)


def _remove_records(folder: Path) -> None:
    """Remove what an earlier run left."""
    try:
        for name in RECORDS:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise CharLMError(f"cannot remove the run in {folder}: {error.strerror or error}") from error
