"""Reporters: they receive the events of a run. `Reporter` ignores them, `Terminal` shows them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..data.corpus import describe
from ..model import parameters
from .state import TrainingRun

NATS_PER_BIT = math.log(2)


class Reporter:
    """Receives the events of a run; the base class ignores them."""

    def begin(self, run: TrainingRun) -> None: ...

    def row(self, run: TrainingRun, row: dict[str, Any]) -> None: ...

    def sampled(self, run: TrainingRun, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self, run: TrainingRun) -> None: ...


class Reporters(Reporter):
    """Passes all events to several reporters."""

    def __init__(self, *reporters: Reporter):
        self.reporters = reporters

    def begin(self, run: TrainingRun) -> None:
        for reporter in self.reporters:
            reporter.begin(run)

    def row(self, run: TrainingRun, row: dict[str, Any]) -> None:
        for reporter in self.reporters:
            reporter.row(run, row)

    def sampled(self, run: TrainingRun, text: str) -> None:
        for reporter in self.reporters:
            reporter.sampled(run, text)

    def note(self, text: str) -> None:
        for reporter in self.reporters:
            reporter.note(text)

    def end(self, run: TrainingRun) -> None:
        for reporter in self.reporters:
            reporter.end(run)


class Guarded(Reporter):
    """Passes events on until the output fails (a closed pipe or terminal, a full disk); then it is quiet.

    Args:
        reporter: receives the events
        failed: called once, when an event could not be shown
    """

    def __init__(self, reporter: Reporter, failed: Callable[[], None]):
        self.reporter, self.failed = reporter, failed
        self.error: BaseException | None = None

    def begin(self, run: TrainingRun) -> None:
        self.reporter.begin(run)  # nothing is lost yet: an error may pass

    def row(self, run: TrainingRun, row: dict[str, Any]) -> None:
        self._try(lambda: self.reporter.row(run, row))

    def sampled(self, run: TrainingRun, text: str) -> None:
        self._try(lambda: self.reporter.sampled(run, text))

    def note(self, text: str) -> None:
        self._try(lambda: self.reporter.note(text))

    def end(self, run: TrainingRun) -> None:
        self._try(lambda: self.reporter.end(run))

    def _try(self, event: Callable[[], None]) -> None:
        if self.error is not None:
            return
        try:
            event()
        except (OSError, SystemExit) as error:  # rich leaves by SystemExit where a pipe is closed
            self.error = error
            self.failed()


def clock(seconds: float) -> str:
    """Seconds as `1:05` or `2:03:10`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Terminal(Reporter):
    """Shows a progress bar (loss, characters a second, time left), and above it a line for each evaluation.

    Where the console is no terminal there is no bar: every line of the log is shown.

    Args:
        console: to print on
        sample_lines: lines to show of each logged sample
    """

    row_seconds = 2.0  # least time between two evaluations that are shown; the log has all of them

    def __init__(self, console: Console, sample_lines: int = 4):
        self.console, self.sample_lines = console, sample_lines
        self.live: Live | None = None
        self._shown_at = -math.inf
        self._header_shown = False
        self._rate = 0.0  # iterations a second, smoothed
        self._last_report = (0, 0.0)

    def begin(self, run: TrainingRun) -> None:
        config, device = run.config, run.ranks.device
        where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
        if run.ranks.size > 1:
            where = f"{run.ranks.size} processes, each {where}"
        name, rest = run.corpus.name, f" · {describe(run.corpus)}"
        shape = f"{config.num_layers} × {config.hidden_size} LSTM · {parameters(run.model):,} weights · {where}"
        self.console.print(Text.assemble(("corpus  ", "dim"), (name, "bold"), rest), soft_wrap=True)
        self.console.print(Text.assemble(("model   ", "dim"), shape), soft_wrap=True)
        self.console.print(Text.assemble(("run     ", "dim"), str(run.folder)), soft_wrap=True)
        self._last_report = (run.progress.iteration, run.progress.seconds)
        if run.progress.iteration:
            self.note(f"resumed at iteration {run.progress.iteration:,}")
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()

    def row(self, run: TrainingRun, row: dict[str, Any]) -> None:
        iteration, seconds = run.progress.iteration, run.progress.seconds
        if seconds > self._last_report[1]:
            rate = (iteration - self._last_report[0]) / (seconds - self._last_report[1])
            self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
            self._last_report = (iteration, seconds)
        last = iteration >= run.total_iterations or run.stop_reason
        if not self.console.is_terminal:
            self._plain(run, row)
        elif "val_nats" in row and (last or time.monotonic() - self._shown_at >= self.row_seconds):
            self._shown_at = time.monotonic()
            self._evaluation(run, row)
        if self.live is not None:
            self.live.update(self._bar(run, row))

    def _plain(self, run: TrainingRun, row: dict[str, Any]) -> None:
        """One line of the log, where there is no bar."""
        self._evaluation(run, row)

    def _evaluation(self, run: TrainingRun, row: dict[str, Any]) -> None:
        if not self._header_shown:
            self.console.print(Text("  epoch  iteration   train     val    bits   chars/s", "dim"))
            self._header_shown = True
        val = row.get("val_nats")
        best = "  best" if val is not None and run.progress.stale == 0 else ""
        self.console.print(
            Text.assemble(
                f"{row['epoch']:7.2f}  {row['iteration']:9,}  {row['train_nats']:6.4f}  ",
                (f"{'–':>6}" if val is None else f"{val:6.4f}", "bold"),
                f"  {'–':>6}" if val is None else f"  {val / NATS_PER_BIT:6.4f}",
                f"  {row['chars_per_s']:8,}",
                (best, "green"),
            )
        )

    def _bar(self, run: TrainingRun, row: dict[str, Any]) -> Table:
        progress, loss, width = run.progress, row["train_nats"], self.console.width
        grid = Table.grid(padding=(0, 2))
        done, left = min(1.0, run.fraction_done), self._seconds_left(run)
        cells = [
            ProgressBar(total=1.0, completed=done, width=max(8, min(28, width - 82))),
            Text(f"{done:4.0%}"),
            Text.assemble(("loss ", "dim"), f"{loss:.3f} nats", (f" {loss / NATS_PER_BIT:.3f} bits", "dim")),
            Text.assemble(f"{row['chars_per_s']:,}", (" chars/s", "dim")),
            Text.assemble(clock(left) if left is not None else "–", (" left", "dim")),
        ]
        if progress.best_nats and width >= 88:
            cells.insert(3, Text(f"best {progress.best_nats:.4f}", "green"))
        for _ in cells:
            grid.add_column(no_wrap=True)
        grid.add_row(*cells)
        return grid

    def _seconds_left(self, run: TrainingRun) -> float | None:
        progress, config = run.progress, run.config
        by_iterations = (run.total_iterations - progress.iteration) / self._rate if self._rate else None
        if not config.max_time:
            return by_iterations
        by_time = config.max_time - progress.seconds
        return by_time if by_iterations is None else min(by_time, by_iterations)

    def sampled(self, run: TrainingRun, text: str) -> None:
        head = Text(f"── sample at iteration {run.progress.iteration:,} ", "dim")
        lines = text.split("\n")[: self.sample_lines]
        self.console.print(head)
        self.console.print(Text("\n".join(lines), "cyan"), soft_wrap=True)

    def note(self, text: str) -> None:
        self.console.print(Text.assemble(("note    ", "yellow"), text), soft_wrap=True)

    def end(self, run: TrainingRun) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar; also called after an error."""
        if self.live is not None:
            self.live.stop()
            self.live = None
