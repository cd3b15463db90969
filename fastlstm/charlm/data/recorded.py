"""Where a text is, as a checkpoint records it, and how it is found again from another folder or after a move."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CharLMError
from .corpus import Corpus, CorpusOptions, SourceAndNote, find
from .pipes import is_pipe
from .text_source import TextSource, source_of_path

PATHS = ("path", "path_from_run")  # absolute, and relative to the folder of the run


def corpus_record(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """The part `corpus` of a checkpoint. folder: of the run."""
    record = {"name": corpus.name, "sha256": corpus.sha256, "size": corpus.size, "symbols": len(corpus)}
    if corpus.source.path is not None:
        absolute = Path(os.path.abspath(corpus.source.path))
        record["path"] = str(absolute)
        with suppress(ValueError):  # on another drive of Windows there is no such path
            record["path_from_run"] = os.path.relpath(absolute, os.path.abspath(folder))
    return record


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """A record for a checkpoint that leaves its machine."""
    return {name: value for name, value in record.items() if name not in PATHS}


def find_recorded(record: dict[str, Any], folder: Path | None, options: CorpusOptions) -> SourceAndNote:
    """Find a text that a checkpoint records: where the run's folder says, at its absolute path, or by its name.

    Of several texts the first one with the recorded size is taken.

    Args:
        record: made by `corpus_record`
        folder: of the run, or that the checkpoint is in; None if it is in no file
        options: how the text is read

    Raises:
        CharLMError: there is no such text.
    """
    if not any(type(record.get(name)) is str for name in PATHS):
        return find(record["name"], options)
    first, tried = None, []
    for path in _candidates(record, folder):
        source = _source_at(path, options)
        if source is None:
            tried.append(path)
        elif source.size == record.get("size"):
            return source, None
        else:
            first = first or source
    if first is None:
        raise CharLMError(
            f"the text of this model is gone: there is no {' nor '.join(map(str, tried))}; put it back, or name it"
        )
    return first, None


def _source_at(path: Path, options: CorpusOptions) -> TextSource | None:
    """The text at a path; None if there is none that can be read twice."""
    if not os.path.exists(path) or is_pipe(str(path)):
        return None
    try:
        source = source_of_path(path, None if options.bytes else options.encoding)
        return source if source.size >= 0 else None
    except (CharLMError, OSError):
        return None


def _candidates(record: dict[str, Any], folder: Path | None) -> list[Path]:
    """Paths at which the text may be, each once."""
    paths = [Path(record["name"])]
    if type(record.get("path")) is str:
        paths.insert(0, Path(record["path"]))
    if type(record.get("path_from_run")) is str and folder is not None:
        paths.insert(0, Path(os.path.normpath(folder.absolute() / record["path_from_run"])))
    return [Path(path) for path in dict.fromkeys(map(os.path.abspath, paths))]
