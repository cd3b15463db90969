"""Text that can be read only once: standard input (`-`), pipes, `<(…)`.

A corpus is read twice, so such a text is first copied to a file: in training to the folder of the run (`KEPT`), elsewhere to
a temporary one that lives as long as its `TextSource`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import CharLMError
from .text_source import TextSource

KEPT = "piped.txt"  # name of the copy in the folder of a run
CHUNK = 1 << 20  # bytes
_FOLDERS = {Path("/dev"), Path("/proc")}  # what is in them means another file in every process


def is_pipe(name: str) -> bool:
    """True if a name is `-` or a path that cannot be read twice or by another process."""
    if name == "-":
        return True
    there = os.path.exists(name) and not os.path.isdir(name)
    return there and (not os.path.isfile(name) or _of_this_process(name))


def _of_this_process(name: str) -> bool:
    return bool(_FOLDERS & set(Path(name).absolute().parents))


def chunks(name: str) -> Iterator[bytes]:
    """Yields the bytes of a text for which `is_pipe` is true. Raises CharLMError if it cannot be read."""
    if name == "-" and sys.stdin is None:  # closed: its number may be another file's by now
        raise CharLMError("cannot read -: standard input is closed; give it a text, or name a file")
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except OSError as error:
        raise CharLMError(f"cannot read {name}: {error.strerror or error}") from error


def title(name: str) -> str:
    """What a text for which `is_pipe` is true may be called: `stdin`, `pipe`, or the name of its file."""
    if name in ("-", "/dev/stdin"):
        return "stdin"
    return "pipe" if _of_this_process(name) else Path(name).absolute().stem


def copied(name: str, encoding: str | None) -> TextSource:
    """A source of the text in a temporary file. encoding: as for `TextSource`. Raises CharLMError."""
    folder = tempfile.TemporaryDirectory(prefix="fastlstm-")
    path = Path(folder.name, KEPT)
    parts = chunks(name)
    try:
        with open(path, "wb") as stream:
            for part in parts:
                stream.write(part)
    except OSError as error:
        raise CharLMError(
            f"cannot keep the text of {name} in {folder.name}: {error.strerror or error}; free some space there"
        ) from error
    return TextSource([path], encoding, owner=folder)
