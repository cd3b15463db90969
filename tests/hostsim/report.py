"""Turns the simulation's "[pc 0x…]" into a source line."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path


def with_source(message: str, library: str) -> str:
    """The message with file:line in place of an address inside `library`; unchanged if addr2line is missing."""
    match = re.search(r" \[pc (0x[0-9a-f]+)\]", message)
    if not match or not shutil.which("addr2line"):
        return message
    address = hex(int(match[1], 16) - 1)  # the call is before the address it returns to
    done = subprocess.run(["addr2line", "-i", "-e", library, address], capture_output=True, text=True)
    lines = [f"{Path(line.split(' ')[0]).name}" for line in done.stdout.splitlines() if not line.startswith("?")]
    return message.replace(match[0], " at " + " in ".join(lines[:3])) if lines else message
