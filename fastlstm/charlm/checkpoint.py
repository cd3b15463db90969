"""Checkpoints: one safetensors file each, replaced atomically: after a crash either the old or the new one is there.

Tensors have the names of the model's parameters. Tensors of a resumable run (optimiser, random generators, hidden
state) start with `train/`. The metadata has one key, `charlm`, with a JSON object:

    version     of this format
    config      the options of the run
    vocabulary  {"symbols": "…", "bytes": false}
    corpus      {"name", "sha256", "size", "symbols"}, and of a text in files {"path", "path_from_run"}
    metrics     iteration, epoch, val_nats, best_nats, …
    run         further state of a resumable run (only in last.safetensors)
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import config as configs
from .data.vocab import Vocabulary
from .errors import CharLMError, brief, first_line

VERSION = 1
KEY = "charlm"
TRAIN = "train/"
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# What safetensors and torch raise for a tensor of a type that this torch lacks, or of a shape that no memory holds
_BAD_TENSOR = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError)


@dataclass
class Checkpoint:
    """Content of a file.

    Attributes:
        config, vocab, corpus, metrics, run: of its metadata
        weights: the model's tensors
        train: those of a resumable run, without their prefix
        folder: that the file was read from; None for one that was not
    """

    config: dict[str, Any]
    vocab: Vocabulary
    corpus: dict[str, Any]
    metrics: dict[str, Any]
    weights: dict[str, Tensor]
    train: dict[str, Tensor] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to `path`, atomically and durably. Raises CharLMError."""
    record = {
        "version": VERSION,
        "config": checkpoint.config,
        "vocabulary": {"symbols": checkpoint.vocab.symbols, "bytes": checkpoint.vocab.bytes},
        "corpus": checkpoint.corpus,
        "metrics": checkpoint.metrics,
        "run": checkpoint.run,
    }
    tensors = {**checkpoint.weights, **{TRAIN + name: value for name, value in checkpoint.train.items()}}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomic(path, save(tensors, {KEY: json.dumps(record, ensure_ascii=True)}))


def write_atomic(path: Path, content: bytes | Iterable[bytes], option: str = "--checkpoint-dir") -> None:
    """Replace a file atomically: write a temporary one, fsync, rename, fsync the folder.

    A link stays, and the file that it leads to is replaced. A pipe or device is written to.

    Args:
        path: of the file
        content: its bytes, whole or in parts
        option: the command line option that chose the path, for the error message

    Raises:
        CharLMError: the file cannot be written; the old one is unchanged.
    """
    if path.is_dir():
        raise CharLMError(f"cannot save {path}: it is a folder, expected a file; choose another {option}")
    parts = _Counted([content] if isinstance(content, bytes) else content)
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as stream:
                stream.writelines(parts)
        else:
            _replace(Path(os.path.realpath(path)), parts)
    except OSError as error:
        kept = "; the previous one is untouched" if path.is_file() else ""
        raise CharLMError(
            f"cannot save {path} ({parts.size / 1e6:.1f} MB): {error.strerror or error}{kept}; "
            f"make room or choose another {option}"
        ) from error


class _Counted:
    """Parts of a file, one by one; size: bytes so far."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self.parts, self.size = parts, 0

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            self.size += len(part)
            yield part


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")  # of this writer alone
    try:
        with open(temporary, "xb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open a folder to sync it
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path, with_train: bool = False) -> Checkpoint:
    """Load a checkpoint into main memory.

    Args:
        path: of the file
        with_train: also load the tensors of a resumable run

    Raises:
        CharLMError: there is no such file, it is damaged, or another program wrote it.
    """
    if not path.is_file():
        raise CharLMError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, "pt") as stream:
            record = _record(path, (stream.metadata() or {}).get(KEY))
            names = [name for name in stream.keys() if with_train or not name.startswith(TRAIN)]  # noqa: SIM118
            tensors = {name: stream.get_tensor(name) for name in names}
    except OSError as error:
        raise CharLMError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, *_BAD_TENSOR) as error:
        raise CharLMError(
            f"{path} is no checkpoint, or it is damaged ({first_line(error)}): expected a safetensors file that "
            "`fastlstm train` wrote"
        ) from error
    return _unpack(path, record, tensors)


def _record(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise CharLMError(
            f"{path} is a safetensors file, but not one that `fastlstm train` wrote: it has no {KEY!r} metadata"
        )
    try:
        record = json.loads(text)
        version = record["version"]
        if type(version) is not int or version < 1:
            raise TypeError(version)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CharLMError(f"{path} is damaged: its {KEY!r} metadata cannot be read") from error
    if version > VERSION:
        raise CharLMError(
            f"{path} has checkpoint format {version}; this fastlstm knows up to {VERSION}: upgrade with "
            "pip install -U fastlstm"
        )
    return record


def _unpack(path: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    """Check the types of a file's parts and put them into a `Checkpoint`."""
    weights = {name: value for name, value in tensors.items() if not name.startswith(TRAIN)}
    try:
        for part in ("config", "vocabulary", "corpus", "metrics", "run"):
            if not isinstance(record[part], dict):
                raise CharLMError(f"{part} in its metadata is {brief(record[part])}, expected an object")
        for name, value in weights.items():
            if value.dtype not in WEIGHT_TYPES:
                expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_TYPES)
                raise CharLMError(f"the weights {brief(name)} are {value.dtype}, expected one of {expected}")
        configs.from_json(record["config"])
        vocabulary, corpus, metrics = record["vocabulary"], record["corpus"], record["metrics"]
        for what, value, expected_type in (
            ("the vocabulary's symbols", vocabulary["symbols"], str),
            ("the vocabulary's bytes", vocabulary["bytes"], bool),
            ("the corpus's name", corpus["name"], str),
            ("the corpus's sha256", corpus["sha256"], str),
        ):
            if type(value) is not expected_type or value == "":
                raise CharLMError(f"{what} in its metadata is {brief(value)}, expected {expected_type.__name__}")
        if record["run"]:
            _check_numbers("run", record["run"], ("processes",))
            _check_numbers("run", record["run"]["progress"], ("iteration",))
        _check_numbers("corpus", corpus, ("size", "symbols"))
        _check_numbers("metrics", metrics, ("iteration", "epoch"), ("train_nats", "val_nats", "best_nats"))
        return Checkpoint(
            config=record["config"],
            vocab=Vocabulary(vocabulary["symbols"], vocabulary["bytes"]),
            corpus=corpus,
            metrics=metrics,
            weights=weights,
            train={name[len(TRAIN) :]: value for name, value in tensors.items() if name.startswith(TRAIN)},
            run=record["run"],
            folder=path.parent,
        )
    except KeyError as error:
        raise CharLMError(f"{path} is damaged: its metadata lacks {error}") from error
    except CharLMError as error:
        raise CharLMError(f"{path} is damaged: {error}") from error


def _check_numbers(part: str, values: Any, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Raises KeyError or CharLMError unless `needed` are numbers below 2**63, and `optional` likewise, None or not there."""
    if not isinstance(values, dict):
        raise CharLMError(f"{part} in its metadata is {brief(values)}, expected an object")
    for name in (*needed, *optional):
        value = values[name] if name in needed else values.get(name)
        if name in optional and value is None:
            continue
        fraction = type(value) is float and (name == "epoch" or name in optional)
        if not fraction and not (type(value) is int and abs(value) < 1 << 63):
            raise CharLMError(f"{part} in its metadata has {name} {brief(value)}, expected a number")


def locate(name: str) -> Path:
    """Resolve a name to a checkpoint: a file, the best of a run's folder, or a model in models/. Raises CharLMError."""
    path = Path(name)
    for file in ("best.safetensors", "last.safetensors"):
        if os.path.isfile(path / file):
            return path / file
    shipped = {file.stem: file for file in (Path(__file__).parent / "models").glob("*.safetensors")}
    if name in shipped and not os.path.isfile(path):
        return shipped[name]  # also beside a folder of that name that holds no run
    if os.path.isdir(path):
        raise CharLMError(f"the folder {name} holds neither best.safetensors nor last.safetensors")
    if not os.path.exists(path):
        raise CharLMError(
            f"there is no checkpoint {name}: expected a .safetensors file, the folder of a run, or a model that comes "
            f"with fastlstm ({', '.join(sorted(shipped))})"
        )
    return path
