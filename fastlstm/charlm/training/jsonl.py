"""JSON Lines files of a run (log.jsonl, samples.jsonl). A resumed run truncates them to the checkpoint's length."""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CharLMError


class JsonLines:
    """Appends JSON objects to a file, one a line.

    Args:
        path: of the file
        keep: bytes to keep; the rest was written after the last checkpoint of a killed run

    Raises:
        CharLMError: the file cannot be written or is shorter than `keep`.
    """

    def __init__(self, path: Path, keep: int = 0):
        self.path = path
        try:
            self._stream = open(path, "ab", buffering=0)  # noqa: SIM115
            if self._stream.tell() < keep:
                raise CharLMError(
                    f"{path} is shorter than its checkpoint says: it was changed, so the run cannot be resumed"
                )
            self._stream.truncate(keep)
        except OSError as error:
            raise CharLMError(f"cannot write {path}: {error.strerror or error}") from error
        self.size = keep

    def add(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row) + "\n").encode()
        with self._explained():
            if self._stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += len(line)

    def sync(self) -> None:
        """fsync the file; called before a checkpoint that refers to its length is written."""
        with self._explained():
            os.fsync(self._stream.fileno())

    @contextmanager
    def _explained(self):
        try:
            yield
        except OSError as error:
            raise CharLMError(
                f"cannot write {self.path}: {error.strerror or error}; make room and use --resume"
            ) from error

    def close(self) -> None:
        self._stream.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file, without an incomplete last line (of a killed run)."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
