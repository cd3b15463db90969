"""`fastlstm demo`: about a minute of training on given names, then fifty names that are in no training set.

On a slow or busy machine it trains for fewer epochs rather than to a time limit, so that the learning rate always runs through
its whole schedule: a few iterations and an evaluation are timed first.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from .. import checkpoint, output
from ..config import PRESETS, make
from ..data.corpus import CorpusOptions, load
from ..errors import command
from ..evaluate import total_nats
from ..lm import CharLM
from ..sampling.novelty import TrainingLines
from ..sampling.sample import Sampling, sample_texts
from ..training.distributed import Ranks
from ..training.progress import NATS_PER_BIT, Reporter, Terminal, clock
from ..training.runs import TrainResult, train
from ..training.state import TrainingRun
from ..training.trainer import Trainer

SHOW_AT = (0.0, 0.01, 0.03, 0.08, 0.16, 0.3, 0.42)  # fractions of the run after which samples are shown
NAMES = 50
MOST_EPOCHS, LEAST_EPOCHS = PRESETS["names"]["max_epochs"], 4
SEED = 1


class _Demo(Terminal):
    """The terminal's progress bar; above it a line at each point of SHOW_AT: time, loss and a few samples."""

    row_seconds = 0.0

    def __init__(self, console: Console):
        super().__init__(console)
        self.points = list(SHOW_AT)

    def begin(self, run: TrainingRun) -> None:
        items = len(run.corpus.starts) - 1
        self.console.print(
            Text(f"Reading {items:,} given names, letter by letter, until it can make up its own.", "bold")
        )
        super().begin(run)
        self.console.print(Text("\n   time    loss  writes", "dim"))

    def _plain(self, run: TrainingRun, row: dict[str, Any]) -> None:
        if "val_nats" in row:
            self._evaluation(run, row)

    def _evaluation(self, run: TrainingRun, row: dict[str, Any]) -> None:
        if not self.points or run.fraction_done < self.points[0]:
            return
        self.points = [point for point in self.points if point > run.fraction_done]
        names = sample_texts(run.model, run.corpus.vocab, Sampling(length=24, stop="\n", num=7, seed=SEED))
        facts = f"{clock(run.progress.seconds):>7}  {row['val_nats']:6.3f}  "
        self.console.print(Text.assemble(facts, ("  ".join(names), "cyan")), no_wrap=True, overflow="ellipsis")


def demo(
    checkpoint_dir: Annotated[Path, typer.Option(help="folder of the run; one that is there is replaced")] = Path(
        "runs/demo"
    ),
    seconds: Annotated[
        float,
        typer.Option(
            help="to plan for: on a slow or busy machine, as many epochs as fit into them by a first measurement"
        ),
    ] = 120.0,
) -> None:
    """Train on given names, about a minute on two cores, and make up fifty new ones."""
    run_demo(checkpoint_dir, seconds, output.console())


def run_demo(folder: Path, seconds: float, console: Console) -> None:
    """Train the `names` model and print new names. folder: of the run; seconds: of training to plan for."""
    epoch = _seconds_of_an_epoch()
    epochs = planned_epochs(seconds, epoch)
    if epochs < MOST_EPOCHS:
        plan = f"An epoch takes {epoch:.2g} s on this machine: {epochs} of them rather than up to {MOST_EPOCHS}."
        console.print(Text(plan, "dim"))
    reporter = _Demo(console)
    try:
        result = train("names", folder, preset="names", max_epochs=epochs, overwrite=True, reporter=reporter)
    finally:
        reporter.stop()
    lm = result.load()
    names, share = new_names(lm, NAMES)
    path = folder / "names.txt"
    checkpoint.write_atomic(path, "".join(name + "\n" for name in names).encode())
    console.print()
    console.print(Text(f"{len(names)} names that are not in the training data", "bold"))
    console.print(Columns([Text(name, "green") for name in sorted(names)], padding=(0, 2), column_first=True))
    console.print()
    for name, value in _facts(result, share, path).items():
        console.print(Text.assemble((f"{name:8}", "dim"), value), soft_wrap=True)


def _seconds_of_an_epoch() -> float:
    """The time of an epoch and its evaluation, from one evaluation and the mean of ten iterations after three."""
    config = make("names").settle(True)
    corpus = load("names", CorpusOptions(config.encoding, lines=True, unique=True))
    trainer = Trainer(config, corpus, Path(), Ranks(), Reporter())  # it writes nothing: only `run` does
    total_nats(trainer.model, trainer.val)
    times = [time.monotonic()]
    total_nats(trainer.model, trainer.val)
    times.append(time.monotonic())
    trainer.model.train()
    for steps in (3, 10):
        for _ in range(steps):
            trainer.step()
        float(trainer.loss_sum)  # waits for the device
        times.append(time.monotonic())
    return (times[1] - times[0]) + (times[3] - times[2]) / 10 * trainer.train.batches


def planned_epochs(seconds: float, epoch: float) -> int:
    """Epochs that fit into some seconds, of which each epoch takes `epoch`."""
    return max(LEAST_EPOCHS, min(MOST_EPOCHS, int(seconds / epoch)))


def _facts(result: TrainResult, share: float, path: Path) -> dict[str, str]:
    return {
        "new": f"{share:.0%} of the names it draws are in neither the training nor the validation set",
        "loss": f"{result.nats:.4f} nats ({result.nats / NATS_PER_BIT:.4f} bits) a character, the best validation loss",
        "time": f"{clock(result.seconds)} of training, {result.iteration:,} iterations: {result.reason}",
        "model": str(result.best),
        "names": str(path),
        "more": f"{command()} sample {shlex.quote(str(result.folder))} --num 20",
    }


def new_names(lm: CharLM, num: int) -> tuple[list[str], float]:
    """`num` distinct sampled names that are in neither set, and the share of such names among all samples."""
    training_lines = TrainingLines.of_split(corpus := lm.corpus(), lm.divide(corpus))
    distinct: dict[str, None] = {}
    samples = new = 0
    for name in lm.sample(num=20 * num, seed=SEED):
        samples += 1
        if name and training_lines.origin(name) == "new":
            new += 1
            distinct[name] = None
        if len(distinct) == num:
            break
    return list(distinct), new / samples
