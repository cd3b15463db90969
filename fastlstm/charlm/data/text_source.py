"""Reads files and folders as text in chunks, with decoding and a hash.

A `TextSource` can be read more than once (encoding a corpus takes two passes) and holds one chunk in memory at a time.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CharLMError

CHUNK = 1 << 22  # characters in memory at a time
_CHECKPOINTS = {"best.safetensors", "last.safetensors"}
_RECORDS = {"log.jsonl", "samples.jsonl", "timeline.html", "piped.txt"}


class _Tee(io.RawIOBase):
    """A binary file that updates a hash with every byte that is read."""

    def __init__(self, stream: io.RawIOBase, digest):
        self.stream, self.digest, self.total = stream, digest, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        n = self.stream.readinto(buffer)
        self.digest.update(memoryview(buffer)[:n])
        self.total += n
        return n

    def close(self) -> None:
        self.stream.close()
        super().close()


@dataclass
class TextSource:
    """Text in files; it can be read more than once.

    Attributes:
        files: paths in order
        encoding: of all files; None for bytes, which are decoded as latin-1
        transform: maps the text of one whole file to the text of the corpus (built-in corpora); None for no change
        encoding_of: encoding by file (Python sources declare their own)
        path: the file or folder that the user named; None for built-in corpora, $FASTLSTM_DATA and pipes
        owner: object whose end removes the files (a temporary folder)
        sha256: of all bytes in order, set when `chunks` has run to its end
        stamps: size and modification time of each file, set likewise
    """

    files: list[Path]
    encoding: str | None = "utf-8"
    transform: Callable[[str], str] | None = None
    encoding_of: Callable[[Path], str] | None = None
    path: Path | None = None
    owner: Any = None
    sha256: str = field(default="", init=False)  # of all bytes in order, after chunks() has run to its end
    stamps: list[tuple[int, int]] = field(default_factory=list, init=False)  # size and mtime when last read

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)

    def chunks(self) -> Iterator[str]:
        """Yields the text in strings of at most CHUNK characters; nothing is inserted between files."""
        digest = hashlib.sha256()
        stamps = []
        for path in self.files:
            try:
                with open(path, "rb", buffering=0) as stream:
                    stat = os.fstat(stream.fileno())
                    stamps.append((stat.st_size, stat.st_mtime_ns))
                    yield from self._read(path, _Tee(stream, digest))
            except OSError as error:
                raise CharLMError(f"cannot read {path}: {error.strerror or error}") from error
        self.sha256, self.stamps = digest.hexdigest(), stamps

    def _read(self, path: Path, tee: _Tee) -> Iterator[str]:
        encoding = codec(self.encoding_of(path) if self.encoding_of else self.encoding or "latin-1")
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
        except (LookupError, UnicodeError) as error:
            raise CharLMError(_wrong_encoding(path, encoding, error)) from error

    def changed(self) -> list[Path]:
        """Files whose size or modification time differs from when they were read."""
        now = []
        for path in self.files:
            try:
                stat = path.stat()
                now.append((stat.st_size, stat.st_mtime_ns))
            except OSError:
                now.append((-1, -1))
        return [path for path, old, new in zip(self.files, self.stamps, now, strict=True) if old != new]


def files_under(folder: Path, suffix: str = "", without: Set[str] = frozenset()) -> list[Path]:
    """Text files under a folder, recursively, in order of path.

    Hidden files, files with a NUL byte in their first 4,096 bytes and the logs of a run are left out.

    Args:
        folder: where to look
        suffix: that file names end with
        without: names of folders to skip
    """
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__pycache__" and n not in without)
        records = _RECORDS if _CHECKPOINTS & set(names) else set()
        visible = (name for name in sorted(set(names) - records) if not name.startswith("."))
        paths += [Path(parent, name) for name in visible if name.endswith(suffix)]
    return [path for path in paths if path.is_file() and not _binary(path)]


def _binary(path: Path) -> bool:
    with open(path, "rb") as stream:
        return b"\0" in stream.read(4096)


def codec(encoding: str) -> str:
    """The codec to read text of an encoding with: for UTF-8 the one that drops a byte order mark. Raises CharLMError."""
    try:
        return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    except (LookupError, ValueError) as error:  # ValueError: a name with a NUL
        raise CharLMError(f"there is no encoding {encoding!r}; try utf-8, latin-1, gb18030, …") from error


def _wrong_encoding(name: str | Path, encoding: str, error: Exception) -> str:
    """What is wrong with a text that its codec cannot read, other than single bytes: `utf-16 stream does not start with BOM`."""
    return f"cannot read {name} as {encoding!r}: {error}; try utf-8, latin-1, gb18030, …"


def decode(data: bytes, encoding: str | None, name: str | Path) -> str:
    """Text of some bytes, read as `TextSource` reads a file: no byte order mark, every line end a newline.

    Args:
        data: the bytes
        encoding: of the text; None for a byte model, whose text keeps every byte (those that are not UTF-8 as escapes)
        name: of the text in error messages

    Raises:
        CharLMError: the bytes are not of that encoding, or there is no such encoding.
    """
    if encoding is None:
        return data.decode("utf-8", "surrogateescape")
    try:
        return io.TextIOWrapper(io.BytesIO(data), codec(encoding)).read()
    except UnicodeDecodeError as error:
        raise CharLMError(
            f"{name} is not {encoding}, as the model's text is: byte {error.start:,}; convert it"
        ) from error
    except (LookupError, UnicodeError) as error:
        raise CharLMError(_wrong_encoding(name, encoding, error)) from error


def small_text(path: Path, encoding: str | None) -> str:
    """The text of a small file. encoding: as for `decode`. Raises CharLMError."""
    try:
        return decode(path.read_bytes(), encoding, path)
    except OSError as error:
        raise CharLMError(f"cannot read {path}: {error.strerror or error}") from error


def source_of_path(path: Path, encoding: str | None) -> TextSource:
    """A source for a file or for the text files of a folder. Raises CharLMError for a folder without text."""
    if path.is_dir():
        files = files_under(path)
        if not files:
            raise CharLMError(f"the folder {path} holds no text file")
    else:
        files = [path]
    return TextSource(files, encoding, path=path)
