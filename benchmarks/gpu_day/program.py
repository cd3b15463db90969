"""Programs that a stage runs: ended with all that they started where they take too long."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from glob import glob
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str | None:
    """Where a tool of the CUDA toolkit is."""
    usual = sorted(glob(f"/usr/local/cuda*/bin/{name}") + glob(f"/opt/nvidia/nsight-compute/*/{name}"))
    return shutil.which(name) or (usual[-1] if usual else None)


def output(command: list[str], seconds: float, **env: str) -> tuple[str, int | str]:
    """What a program prints, run in the project's root, and its exit code or that it was ended."""
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **env}, preexec_fn=os.setpgrp
        )
        try:
            code: int | str = process.wait(max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            code = f"ended after {seconds:.0f} s"
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        file.seek(0)
        return file.read().decode(errors="replace"), code


def session(leader: int) -> list[int]:
    """The processes of a session: a process that began one, and all that it started, in whatever group they are."""
    processes = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError, ValueError, IndexError):
                fields = Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == leader:
                    processes.append(int(entry))
    return processes
