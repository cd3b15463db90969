"""`fastlstm evaluate` and `fastlstm score`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data.text_source import small_text
from ..errors import CharLMError, count
from ..evaluate import evaluate as measure
from ..lm import CharLM, Scored
from .common import ModelName

PARTS = ("val", "train", "all")


def evaluate(
    model: ModelName,
    text: Annotated[
        str | None,
        typer.Argument(help="a file, folder or built-in corpus [dim]\\[what the model learned][/]", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="val, train or all [dim]\\[val of what it learned, or a copy of that; all of another][/]",
            show_default=False,
        ),
    ] = None,
    orders: Annotated[int, typer.Option(help="longest n-gram of the baseline; 0 for no baseline")] = 6,
) -> None:
    """How well a model predicts a text: nats, bits, perplexity, beside n-grams of the same training text."""
    lm = CharLM.load(model)
    corpus = lm.corpus(text)
    own = lm.is_own_corpus(corpus)
    part = _part(split, own)
    console = Console(highlight=False)
    eval_text = lm.eval_text(corpus, part)
    result = measure(lm.model, lm.vocab, eval_text)
    named = f"{text or lm.saved.corpus['name']}, {part} ({lm.config.split} split)" if own else text
    console.print(Text.assemble((named, "bold"), f": {count(result.characters, 'character')}"))
    share = len(eval_text) / result.characters  # predictions a character, above 1 for a byte model
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("nats/char", "bits/char", "bits/byte", "perplexity"):
        table.add_column(name, justify="right")

    def row(name: str, nats: float, style: str = "") -> None:
        bits = nats / math.log(2)
        cells = (nats, bits, bits * result.characters / result.bytes, math.exp(nats))
        table.add_row(name, *(f"{value:.4f}" for value in cells[:3]), f"{cells[3]:.3f}", style=style)

    row("model", result.nats_per_char, "bold green")
    note = ""
    if orders > 0:
        try:
            for n, nats in enumerate(lm.baseline(eval_text, orders), 1):
                row(f"{n}-gram", nats * share)
        except CharLMError as error:
            note = f"no n-gram baseline: {error}"
    console.print(table)
    if note:
        console.print(Text(note, "yellow"), soft_wrap=True)


def score(
    model: ModelName,
    text: Annotated[Path, typer.Argument(help="a text file, - for standard input", show_default=False)],
    num: Annotated[int, typer.Option(help="lines to show; 0 for all")] = 20,
) -> None:
    """The log-probability of each line, most surprising first, its characters coloured by their probability."""
    lm = CharLM.load(model)
    lines = [line for line in _lines(text, lm.config.encoding) if line.strip()]
    if not lines:
        raise CharLMError(f"{text} has no line to score")
    scored = sorted(lm.score(lines), key=lambda line: -line.mean)
    console = Console(highlight=False)
    console.print(Text(f"nats/{'byte' if lm.vocab.bytes else 'char'}  log p   line", "dim"))
    for line in scored[: num or None]:
        console.print(Text.assemble(f"{line.mean:9.3f} {-line.total:7.2f}  ", coloured(lm, line)), soft_wrap=True)
    mean = sum(line.total for line in scored) / sum(len(line.nats) for line in scored)
    legend = [(f" {low} ", _colour(-math.log(low))) for low in (0.9, 0.5, 0.2, 0.05, 0.01, 0.001)]
    console.print(
        Text.assemble(f"{count(len(lines), 'line')}, {mean:.4f} nats a {lm.vocab.unit}; p", *legend, style="dim")
    )


def _lines(path: Path, encoding: str) -> list[str]:
    return (sys.stdin.read() if str(path) == "-" else small_text(path, encoding)).splitlines()


def _part(split: str | None, own: bool) -> str:
    """The part to score. own: the text is the model's own corpus."""
    if split not in (None, *PARTS):
        raise CharLMError(f"--split is {split!r}, expected {', '.join(PARTS)}")
    if not own and split not in (None, "all"):
        raise CharLMError(f"--split {split} divides the text the model learned; of another text, everything is scored")
    return split or ("val" if own else "all")


def _colour(nats: float) -> str:
    """A colour from green (nats 0) through yellow to red (6 nats and more)."""
    level = min(1.0, nats / 6)  # 6 nats: p = 0.0025
    red, green = int(255 * min(1.0, 2 * level)), int(200 * min(1.0, 2 - 2 * level))
    return f"#{red:02x}{green:02x}40"


def coloured(lm: CharLM, scored: Scored) -> Text:
    """A line with each character coloured by its loss; for a byte model by the sum over its bytes."""
    text, at = Text(), 0
    for symbol in scored.line:
        width = len(lm.vocab.from_text(symbol))
        text.append(symbol, _colour(float(scored.nats[at : at + width].sum())))
        at += width
    return text.append("⏎", _colour(float(scored.nats[at])))
