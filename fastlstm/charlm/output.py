"""Where the commands print, and what they read from standard input.

Text of a model or a user is data: `write` prints it as it is, without markup, wrapping, emoji codes or widened tabs.
Reports (tables, facts) go through a rich `console`. The command runs inside `guarded`, which turns what can go wrong with
standard output into one line: a full disk, a closed stream; characters that its encoding lacks become replacements.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from .errors import CharLMError

_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}


def console(stderr: bool = False, **options: Any) -> Console:
    """A console for reports: only `Text` objects and styles format, never the characters of a string.

    Args:
        stderr: print to standard error
        options: of rich's Console
    """
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, **options)


def write(*parts: str | tuple[str, str]) -> None:
    """Write text to standard output as it is.

    Args:
        parts: strings, or (string, style) that a terminal with colours shows in that style (`bold`, `#80c040`)
    """
    system = None
    if any(isinstance(part, tuple) for part in parts):
        reports = Console()
        system = _SYSTEMS.get(reports.color_system or "") if reports.is_terminal and not reports.no_color else None
    for part in parts:
        text, style = part if isinstance(part, tuple) else (part, "")
        sys.stdout.write(Style.parse(style).render(text, color_system=system) if style else text)
    sys.stdout.flush()


def standard_input() -> bytes:
    """All bytes of standard input. Raises CharLMError if it is closed or cannot be read."""
    if sys.stdin is None:
        raise CharLMError("standard input is closed: give it a text, or name a file instead of -")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise CharLMError(f"cannot read standard input: {error.strerror or error}") from error


@contextmanager
def guarded() -> Iterator[None]:
    """Standard output with faults that are CharLMErrors; the stream as it was is put back at the end.

    Raises:
        CharLMError: standard output is closed, or cannot be written to (a full disk).
        BrokenPipeError: nobody reads it any more.
    """
    _fill_closed_streams()
    stream = sys.stdout
    guard = sys.stdout = _Guarded(stream)  # type: ignore[assignment]
    try:
        try:
            yield
        finally:
            guard.flush()
    finally:
        sys.stdout = stream


def _fill_closed_streams() -> None:
    """Open the null device in place of each closed standard stream: else the next file, say a checkpoint, gets its number."""
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(handle)


class _Guarded:
    """A text stream, None for a closed one. The first fault is raised, what comes after it is dropped."""

    def __init__(self, stream: TextIO | None):
        self.stream, self.broken = stream, False
        if getattr(stream, "errors", "") in ("strict", "surrogateescape"):
            with suppress(AttributeError):  # a stream of another class, which encodes nothing
                stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        if self.broken:
            return len(text)
        if self.stream is None:
            self.broken = True
            raise CharLMError("standard output is closed: nothing can be shown; send it to a file or to /dev/null")
        with self._explained():
            return self.stream.write(text)

    def flush(self) -> None:
        if not self.broken and self.stream is not None:
            with self._explained():
                self.stream.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.broken = True
            self._silence()
            if isinstance(error, BrokenPipeError):
                raise
            raise CharLMError(f"cannot write to standard output: {error.strerror or error}") from error

    def _silence(self) -> None:
        """Send what the stream still holds to the null device, so that Python's last flush does not fail again."""
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
