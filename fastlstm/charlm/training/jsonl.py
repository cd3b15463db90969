"""Files that grow line by line beside a checkpoint (log.jsonl, samples.jsonl) and can be cut back to its length."""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CharLMError


class JsonLines:
    """One JSON object a line, appended.

    path: the file; keep: bytes of it to keep, the rest is what a killed run wrote after its last checkpoint.
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
        """On disk before the checkpoint that counts its bytes."""
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


def rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file; a last line that is not whole (a run that was killed) is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
