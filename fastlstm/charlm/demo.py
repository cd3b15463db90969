"""The demonstration: about a minute of training on given names, then fifty names that nobody has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from . import checkpoint
from .lm import CharLM
from .novelty import Known
from .progress import NATS_PER_BIT, Terminal
from .runs import train
from .sample import Drawing, draw

if TYPE_CHECKING:
    from .trainer import Trainer

SHOW_AT = (0.01, 0.05, 0.2, 0.5)  # shares of the run after which it shows what it writes by then
NAMES = 50
SEED = 1


class _Demo(Terminal):
    """The terminal's reporter, with a few names at some points on the way."""

    def __init__(self, console: Console):
        super().__init__(console)
        self.points = list(SHOW_AT)

    def row(self, trainer: Trainer, row: dict[str, Any]) -> None:
        super().row(trainer, row)
        if self.points and trainer.done >= self.points[0]:
            self.points.pop(0)
            names = draw(trainer.model, trainer.corpus.vocab, Drawing(length=24, stop="\n", num=7, seed=SEED))
            text = Text.assemble((f"  writes {' ':2}", "dim"), ("  ".join(names), "cyan"))
            self.console.print(text, no_wrap=True, overflow="ellipsis")


def demo(folder: Path, seconds: float, console: Console) -> None:
    """Train the `names` model and show what it makes up. folder: of the run; seconds: of training."""
    reporter = _Demo(console)
    try:
        result = train(
            "names", folder, preset="names", max_time=seconds, max_epochs=1_000_000, overwrite=True, reporter=reporter
        )
    finally:
        reporter.stop()
    lm = result.load()
    names, share = new_names(lm, NAMES)
    path = folder / "names.txt"
    checkpoint.replace(path, "".join(name + "\n" for name in names).encode())
    bits = result.nats / NATS_PER_BIT
    console.print()
    console.print(Text(f"{len(names)} names that are not in the training data", "bold"))
    console.print(Columns([Text(name, "green") for name in sorted(names)], padding=(0, 2), column_first=True))
    console.print()
    facts = {
        "new": f"{share:.0%} of the names it draws are in neither the training nor the validation set",
        "loss": f"{result.nats:.4f} nats ({bits:.4f} bits) a character, the best validation loss",
        "model": str(result.best),
        "names": str(path),
        "more": f"fastlstm sample {folder} --num 20",
    }
    for name, value in facts.items():
        console.print(Text.assemble((f"{name:8}", "dim"), value), soft_wrap=True)


def new_names(lm: CharLM, wanted: int) -> tuple[list[str], float]:
    """Different names that are in neither set, and the share of those among all that were drawn for them."""
    known = Known.of(corpus := lm.corpus(), lm.divide(corpus))
    found: dict[str, None] = {}
    drawn = new = 0
    for name in lm.sample(num=20 * wanted, seed=SEED):
        drawn += 1
        if name and known.kind(name) == "new":
            new += 1
            found[name] = None
        if len(found) == wanted:
            break
    return list(found), new / drawn
