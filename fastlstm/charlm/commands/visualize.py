"""`fastlstm visualize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .. import checkpoint
from .. import output as output_of
from ..analysis import excerpt
from ..errors import count
from ..lm import CharLM
from ..page.visualize import page as render_page
from .common import ModelName, Start, TextName


def visualize(
    model: ModelName,
    text: TextName = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the page")] = Path("page.html"),
    length: Annotated[int, typer.Option(help="characters of the text to show")] = 10_000,
    start: Start = 0,
    score_length: Annotated[int, typer.Option(help="characters of it to find cells on")] = 100_000,
    color_blind: Annotated[
        bool, typer.Option("--color-blind", help="colours that every kind of colour vision tells apart, from the start")
    ] = False,
) -> None:
    """One page that shows what a model does: predictions, cells, training. Opens from disk, needs no network."""
    lm = CharLM.load(model)
    shown = excerpt.read(lm, text, start, length)
    long = excerpt.read(lm, text, start, max(length, score_length))
    folder = checkpoint.locate(model).parent
    name = Path(model).resolve().name if Path(model).exists() else model
    with output_of.console(stderr=True).status(
        f"reading {count(len(long), lm.vocab.unit)}, looking for what cells track"
    ):
        html = render_page(lm, shown, long, folder, f"{name} · reading {shown.name}", color_blind)
    content = html.encode()
    checkpoint.write_atomic(output, content, "--output")
    console, size = output_of.console(), len(content) / 1e6
    what = f"  {count(len(shown), lm.vocab.unit)}, {size:.1f} MB"
    console.print(Text.assemble((str(output), "bold"), what), soft_wrap=True)
    if shown.note:
        console.print(Text(shown.note, "yellow"), soft_wrap=True)
