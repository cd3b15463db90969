"""Runs stages one after the other, each in a process of its own under its own limit, and prints the table at the end.

A spare process imports torch while a stage is running, on one core, and then waits for its order, so that a stage, or what
is left of one whose process was lost, begins at once. What a process was doing is in a small file that it writes before
each item; a stage whose process is lost goes on behind that item.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu_day import table
from benchmarks.gpu_day.program import session
from benchmarks.gpu_day.row_file import RowWriter
from benchmarks.gpu_day.stages import Stage

GRACE = 3.0  # seconds between a process's own limit and its end by force
MOST_LOSSES = 8  # of one stage
LEAST_SECONDS = 5.0  # seconds below which no stage is begun
DEVICE_LOST = 75  # exit code of a child whose GPU context is ruined
TORCH_UNUSABLE = 76  # of one whose torch is: what an item did is known, but another process must go on


class Driver:
    """One run of `python -m benchmarks.gpu_day`."""

    def __init__(self, out: Path, seconds: float, rehearse: bool) -> None:
        self.begin, self.seconds, self.rehearse = time.time(), seconds, rehearse
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.rows, self.log = out.resolve(), RowWriter(out.resolve()), out.resolve() / "log.txt"
        self.lost: list[list[str]] = []  # stage and key of every item that a process was lost with
        self.spare: subprocess.Popen | None = None

    def run(self, stages: list[Stage]) -> int:
        """Run the stages; returns 0 where all ended well."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(1))
        self.state = Path(tempfile.mkdtemp(prefix="gpu-day-"))
        fine = True
        try:
            self.spare = self._start()
            for stage in stages:
                fine &= self._stage(stage)
        finally:
            _end(self.spare)
            shutil.rmtree(self.state, ignore_errors=True)
            print(table.render(self.rows.path, self.begin), flush=True)
        return 0 if fine else 1

    def left(self) -> float:
        return self.seconds - (time.time() - self.begin)

    def _stage(self, stage: Stage) -> bool:
        begin, after, losses, any_failed = time.time(), 0, 0, False
        limit = min(stage.limit * (20 if self.rehearse else 1), self.left() - GRACE)
        if limit < LEAST_SECONDS:
            self._add_stage_row(stage, "skipped: no time left", 0.0)
            return False
        until = begin + limit
        while True:
            code, error, progress = self._process(stage, after, until)
            any_failed |= bool(progress.get("failed") or progress.get("left")) or code not in (0, TORCH_UNUSABLE)
            if code in (0, 1) or code == "out of time":
                break
            losses += 1
            if code != TORCH_UNUSABLE:
                self.lost.append([stage.name, progress.get("key", "")])
                self._add_stage_row(stage, code, time.time() - begin, error=error, lost=progress.get("what", "start"))
            if "at" not in progress or losses > MOST_LOSSES or until - time.time() < LEAST_SECONDS:
                break
            after = progress["at"] + 1
        self._add_stage_row(
            stage, code, time.time() - begin, error=error if any_failed else "", losses=losses, **_rest(progress)
        )
        return not any_failed

    def _process(self, stage: Stage, after: int, until: float) -> tuple[int | str, str, dict]:
        """One process of a stage: its exit code or why it was ended, its last lines, and how far it came."""
        child, self.spare = self.spare, None
        if child is None or child.poll() is not None:
            child = self._start()
        progress, start = self.state / "progress", self.log.stat().st_size
        with suppress(OSError):
            progress.unlink()
        order = {"stage": stage.name, "after": after, "until": until, "lost": self.lost, "rehearse": self.rehearse}
        order |= {"out": str(self.out), "progress": str(progress), "begin": self.begin}
        try:
            with suppress(OSError):  # it has ended already; its exit code tells
                child.stdin.write(json.dumps(order).encode() + b"\n")
                child.stdin.close()
            self.spare = self._start()
            code = self._wait(child, stage, progress, until)
        finally:
            _end(child)
        last_progress = {}
        with suppress(OSError, ValueError):
            last_progress = json.loads(progress.read_text())
        return code, "" if code == 0 else _last_lines(self.log, start), last_progress

    def _wait(self, child: subprocess.Popen, stage: Stage, progress: Path, until: float) -> int | str:
        timeout = stage.timeout * (20 if self.rehearse else 1)
        timeout = float(os.environ.get("FASTLSTM_GPU_DAY_TIMEOUT", timeout))  # for tests
        seen, since = None, time.time()
        while True:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(0.05)
            now = [_size_and_time(progress), _size_and_time(self.rows.path)]
            if now != seen:
                seen, since = now, time.time()
            if time.time() > until + GRACE:
                return "out of time"
            # before its first item a process may load libraries for long
            if time.time() - since > (timeout if now[0] else max(timeout, 60)):
                return f"silent for {timeout:.0f} s"

    def _start(self) -> subprocess.Popen:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "benchmarks.gpu_day", "--child"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **({"TRITON_INTERPRET": "1"} if self.rehearse else {})},
            )

    def _add_stage_row(self, stage: Stage, code: int | str, seconds: float, **what: object) -> None:
        self.rows.add("stage", name=stage.name, code=code, seconds=round(seconds, 1), **what)
        words = " ".join(f"{k} {v}" for k, v in what.items() if v and k != "error")
        passed = time.time() - self.begin
        print(
            f"[{passed:5.0f} s] {stage.name}: code {code}, {seconds:.1f} s (expected {stage.expected:.0f}) {words}",
            flush=True,
        )


def _rest(progress: dict) -> dict:
    return {name: progress[name] for name in ("items", "left", "failed") if progress.get(name)}


def _size_and_time(path: Path) -> tuple | None:
    with suppress(OSError):
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    return None


def _last_lines(log: Path, start: int) -> str:
    with open(log, "rb") as file:
        file.seek(max(start, log.stat().st_size - 8000))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-8:])[-1200:]


def _end(child: subprocess.Popen | None) -> None:
    """End a process and all that it started."""
    if child is None:
        return
    for number in session(child.pid):  # its programs are in groups of their own
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    with suppress(OSError):
        child.stdin.close()
