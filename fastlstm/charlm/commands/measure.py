"""`fastlstm evaluate` and `fastlstm score`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from .. import output
from ..data.unknown import encode
from ..errors import CharLMError, count
from ..evaluate import evaluate as measure
from ..evaluate import perplexity
from ..lm import CharLM, Scored
from .common import ModelName, UnknownPolicy

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
    orders: Annotated[int, typer.Option(min=0, help="longest n-gram of the baseline; 0 for no baseline")] = 6,
    unknown: UnknownPolicy = "error",
) -> None:
    """How well a model predicts a text: nats, bits, perplexity, beside n-grams of the same training text."""
    lm = CharLM.load(model)
    corpus = lm.corpus(text, unknown)
    own = lm.is_own_corpus(corpus)
    part = _part(split, own)
    console = output.console()
    eval_text = lm.eval_text(corpus, part)
    result = measure(lm.model, lm.vocab, eval_text)
    named = f"{text or lm.saved.corpus['name']}, {part} ({lm.config.split} split)" if own else text
    console.print(Text.assemble((named, "bold"), f": {count(result.characters, 'character')}"), soft_wrap=True)
    share = len(eval_text) / result.characters  # predictions a character, above 1 for a byte model
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("nats/char", "bits/char", "bits/byte", "perplexity"):
        table.add_column(name, justify="right")

    def row(name: str, nats: float, style: str = "") -> None:
        bits = nats / math.log(2)
        cells = (nats, bits, bits * result.characters / result.bytes, perplexity(nats))
        table.add_row(name, *(f"{value:.4f}" for value in cells[:3]), f"{cells[3]:.3f}", style=style)

    row("model", result.nats_per_char, "bold green")
    notes = list(corpus.notes)
    if orders > 0:
        try:
            for n, nats in enumerate(lm.baseline(eval_text, orders), 1):
                row(f"{n}-gram", nats * share)
        except CharLMError as error:
            notes.append(f"no n-gram baseline: {error}")
    console.print(table)
    for note in notes:
        console.print(Text(note, "yellow"), soft_wrap=True)


def score(
    model: ModelName,
    text: Annotated[Path, typer.Argument(help="a text file, - for standard input", show_default=False)],
    num: Annotated[int, typer.Option(min=0, help="lines to show; 0 for all")] = 20,
    unknown: UnknownPolicy = "error",
) -> None:
    """The log-probability of each line, most surprising first, its characters coloured by their probability.

    The text is read as it is, from its first character on; a model of lines reads each line by itself.
    """
    lm = CharLM.load(model)
    content = lm.decode_text(output.standard_input(), "standard input") if str(text) == "-" else lm.read_text(text)
    if not (content.strip() if lm.of_lines else content):
        raise CharLMError(f"{text} has no line to score")
    note = encode(lm.vocab, lm.vocab.from_text(content), unknown, str(text)).note
    if lm.of_lines:
        scored = lm.score([line for line in content.split("\n") if line.strip()], unknown)
    else:
        scored = _by_line(lm, *lm.score([content], unknown))
    output.write((f"nats/{'byte' if lm.vocab.bytes else 'char'}  log p   line\n", "dim"))
    shown = [line for line in scored if line.text.strip() and not math.isnan(line.mean)]
    for line in sorted(shown, key=lambda line: -line.mean)[: num or None]:
        output.write(f"{line.mean:9.3f} {-line.total:7.2f}  ", *coloured(lm, line), "\n")
    mean = sum(line.total for line in scored) / max(1, sum(np.count_nonzero(~np.isnan(line.nats)) for line in scored))
    legend = [(f" {low} ", _colour(-math.log(low))) for low in (0.9, 0.5, 0.2, 0.05, 0.01, 0.001)]
    output.write((f"{count(len(scored), 'line')}, {mean:.4f} nats a {lm.vocab.unit}; p", "dim"), *legend, "\n")
    if note:
        output.write((note, "yellow"), "\n")


def _by_line(lm: CharLM, scored: Scored) -> list[Scored]:
    """The lines of a scored text, each with its newline."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", scored.text)
    ends = np.cumsum([len(lm.vocab.from_text(line)) for line in lines])
    return [Scored(line, nats) for line, nats in zip(lines, np.split(scored.nats, ends[:-1]), strict=True)]


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


def coloured(lm: CharLM, scored: Scored) -> list[tuple[str, str]]:
    """The characters of a line and a colour each, by their loss; of a byte model by the sum over their bytes.

    A newline is shown as ⏎; a character that was skipped is struck out.
    """
    parts, at = [], 0
    for symbol in scored.text + "\n" * lm.of_lines:
        width = len(lm.vocab.from_text(symbol))
        nats = float(scored.nats[at : at + width].sum())
        parts.append((symbol.replace("\n", "⏎"), "dim strike" if math.isnan(nats) else _colour(nats)))
        at += width
    return parts
