"""The folder of a run, held by one training at a time.

The holder has an exclusive lock on the file `.lock` in it. The lock ends with its process, however that ends, so a run that
was killed leaves a folder that can be taken again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..data.pipes import KEPT
from ..errors import CharLMError

LOCK, LOG = ".lock", "log.jsonl"
MODELS = ("last.safetensors", "best.safetensors")
# Of file systems without locks, and of locks that another process holds
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_HELD = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}


class InUseError(CharLMError):
    """Another training holds the folder."""


class RunFolder:
    """A folder that this process holds; made by `take` or `take_free`.

    Attributes:
        path: of the folder
        note: for the user, where the file system has no locks; empty otherwise
    """

    def __init__(self, path: Path, handle: int, made: list[Path], note: str):
        self.path, self.note = path, note
        self._handle, self._made = handle, made

    def release(self) -> None:
        """Give up the folder; remove it if it was made for a run that never began."""
        if self._made and not (self.path / LOG).exists():
            self._remove(KEPT)
        self._remove(LOCK)  # while it is held: who opened it before finds that it is no longer the file at its path
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()
        os.close(self._handle)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self.path / name).unlink(missing_ok=True)


def holds_run(folder: Path) -> bool:
    """True if a folder holds a run that can be resumed."""
    with _explained(folder):
        return (folder / MODELS[0]).exists()


def take(folder: Path) -> RunFolder:
    """Take a folder, which is made if it is not there.

    Raises:
        InUseError: another training holds it.
        CharLMError: it cannot be made or written.
    """
    with _explained(folder):
        for attempt in range(100):
            try:
                made = _make(folder)
                handle, note = _lock(folder / LOCK)
                break
            except FileNotFoundError:  # its last holder removed it meanwhile
                if attempt == 99:
                    raise
    if handle is None:
        raise InUseError(
            f"{folder} is in use by another training: wait until it ends, or choose another --checkpoint-dir"
        )
    return RunFolder(folder, handle, made, note)


def take_free(folder: Path) -> RunFolder:
    """Take the first of FOLDER, FOLDER-2, FOLDER-3, … that holds no model and that no training holds.

    Raises:
        CharLMError: it cannot be made or written.
    """
    number, free = 1, folder
    while True:
        with suppress(InUseError):
            taken = take(free)
            if not any((free / name).exists() for name in MODELS):
                return taken
            taken.release()
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")


def _make(folder: Path) -> list[Path]:
    """Make a folder; gives those that were missing, innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    if not missing and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return missing


def _lock(path: Path) -> tuple[int | None, str]:
    """An open file with an exclusive lock, None if another process has the lock; and a note for the user."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        note = ""
        try:
            _exclusive(handle)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                if error.errno in _HELD:
                    return None, ""
                raise
            note = f"the file system of {path.parent} has no locks: start no second training in that folder"
        try:
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle, note
        except OSError:
            pass
        os.close(handle)  # the holder before released it by removing the file: there is, or will be, another


def _exclusive(handle: int) -> None:
    """Lock an open file for this process alone. Raises OSError at once where another has it."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CharLMError(
            f"cannot use the folder {folder}: {error.strerror or error}; choose another --checkpoint-dir"
        ) from error
