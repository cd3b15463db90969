"""From files, folders and built-in corpora to text, in chunks: what is read, how it is decoded, what its hash is.

A `TextSource` can be read more than once (encoding a corpus takes two passes) and never holds more than one chunk.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CharLMError

CHUNK = 1 << 22  # characters held at a time
_CHECKPOINTS = {"best.safetensors", "last.safetensors"}
_RECORDS = {"log.jsonl", "samples.jsonl", "timeline.html"}


class _Tee(io.RawIOBase):
    """A binary file that passes what is read through a hash."""

    def __init__(self, raw: io.RawIOBase, digest):
        self.raw, self.digest, self.total = raw, digest, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        n = self.raw.readinto(buffer)
        self.digest.update(memoryview(buffer)[:n])
        self.total += n
        return n

    def close(self) -> None:
        self.raw.close()
        super().close()


@dataclass
class TextSource:
    """Text that can be read again and again.

    files: what is on disk behind it; encoding: how it is decoded, None for bytes (as latin-1);
    transform: the text of one whole file → the text that is learned (built-in corpora), None for as it is;
    encoding_of: a per-file encoding (Python sources may declare their own).
    """

    files: list[Path]
    encoding: str | None = "utf-8"
    transform: Callable[[str], str] | None = None
    encoding_of: Callable[[Path], str] | None = None
    sha256: str = field(default="", init=False)  # of all bytes in order, after chunks() has run to its end
    stamps: list[tuple[int, int]] = field(default_factory=list, init=False)  # size and mtime when last read

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)

    def chunks(self) -> Iterator[str]:
        """The text, in pieces of at most CHUNK characters; files are separated as they stand."""
        digest = hashlib.sha256()
        stamps = []
        for path in self.files:
            try:
                with open(path, "rb", buffering=0) as raw:
                    stat = os.fstat(raw.fileno())
                    stamps.append((stat.st_size, stat.st_mtime_ns))
                    yield from self._read(path, _Tee(raw, digest))
            except OSError as error:
                raise CharLMError(f"cannot read {path}: {error.strerror or error}") from error
        self.sha256, self.stamps = digest.hexdigest(), stamps

    def _read(self, path: Path, tee: _Tee) -> Iterator[str]:
        encoding = self.encoding_of(path) if self.encoding_of else self.encoding or "latin-1"
        if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            encoding = "utf-8-sig"  # the same, less the mark that some editors put first
        newline = "" if self.encoding is None else None  # bytes stay as they are; text gets \n for every line end
        try:
            with io.TextIOWrapper(io.BufferedReader(tee, 1 << 20), encoding, newline=newline) as stream:
                if self.transform is not None:
                    yield self.transform(stream.read())
                    return
                while chunk := stream.read(CHUNK):
                    yield chunk
        except UnicodeDecodeError as error:
            at = tee.total - len(error.object) + error.start
            raise CharLMError(
                f"{path} is not {self.encoding}: byte 0x{error.object[error.start]:02x} at offset {at:,}; "
                "convert it, or train with --encoding (latin-1, gb18030, …) or on raw bytes with --bytes"
            ) from error
        except LookupError as error:
            raise CharLMError(f"there is no encoding {encoding!r}; try utf-8, latin-1, gb18030, …") from error

    def changed(self) -> list[Path]:
        """Files that are no longer what was read, judged by size and time of change."""
        now = []
        for path in self.files:
            try:
                stat = path.stat()
                now.append((stat.st_size, stat.st_mtime_ns))
            except OSError:
                now.append((-1, -1))
        return [path for path, old, new in zip(self.files, self.stamps, now, strict=True) if old != new]


def files_under(folder: Path, suffix: str = "", without: Set[str] = frozenset()) -> list[Path]:
    """Every text file under a folder, in order of path: none hidden, none with a NUL byte near its start.

    What a run wrote beside its checkpoints is no text either. suffix: of the files wanted; without: names of folders
    that are left out, with all that is in them.
    """
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__pycache__" and n not in without)
        records = _RECORDS if _CHECKPOINTS & set(names) else set()
        wanted = (name for name in sorted(set(names) - records) if not name.startswith("."))
        found += [Path(here, name) for name in wanted if name.endswith(suffix)]
    return [path for path in found if path.is_file() and not _binary(path)]


def _binary(path: Path) -> bool:
    with open(path, "rb") as stream:
        return b"\0" in stream.read(4096)


def small_text(path: Path, encoding: str) -> str:
    """A whole file, small enough to hold, in the encoding of a model's text."""
    try:
        return path.read_text(encoding)
    except OSError as error:
        raise CharLMError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CharLMError(
            f"{path} is not {encoding}, as the model's text is: byte {error.start:,}; convert it"
        ) from error


def source_of_path(path: Path, encoding: str | None) -> TextSource:
    """A file, or a folder's text files, as a source of text."""
    if path.is_dir():
        files = files_under(path)
        if not files:
            raise CharLMError(f"the folder {path} holds no text file")
    else:
        files = [path]
    return TextSource(files, encoding)
