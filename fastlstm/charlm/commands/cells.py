"""`fastlstm cells`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import output as output_of
from ..analysis import excerpt
from ..analysis.cells import FDR, MIN_EFFECT, SHIFTS, CellFinding, Findings, find_cells
from ..checkpoint import write_atomic
from ..errors import count
from ..lm import CharLM
from .common import ModelName, Start, TextName

WIDTH = 146  # columns that the table needs; a narrower terminal wraps its lines, nothing is cut off
_STATUS = {
    "found": ("yes", "bold green"),
    "near": ("nearly", "yellow"),
    "none": ("no cell", ""),
    "echo": ("echo", "dim"),
    "rare": ("too rare", "dim"),
}


def cells(
    model: ModelName,
    text: TextName = None,
    length: Annotated[int, typer.Option(help="characters of the text to read")] = 100_000,
    start: Start = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="also write the findings as JSON", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of the table")] = False,
    clamp: Annotated[bool, typer.Option(help="hold each cell that is found and see where the loss rises")] = True,
    seed: Annotated[int, typer.Option(help="seed of the control's shifts")] = 0,
) -> None:
    """Which cell keeps track of what: quotes, comments, line position, indentation and more, found and checked."""
    lm = CharLM.load(model)
    piece = excerpt.read(lm, text, start, length)
    with output_of.console(stderr=True).status(
        f"reading {count(len(piece), lm.vocab.unit)}, looking for what cells track"
    ):
        findings = find_cells(lm, piece, clamp=clamp, seed=seed)
    content = json.dumps(findings.as_json(), indent=1)
    if output:
        write_atomic(output, content.encode(), "--output")
    if as_json:
        print(content)
    else:
        show(output_of.console(width=max(WIDTH, output_of.console().width)), lm, findings)


def show(console: Console, lm: CharLM, findings: Findings) -> None:
    """The findings as a table."""
    half = findings.characters // 2
    console.print(
        Text.assemble(
            (findings.text, "bold"),
            f": {count(findings.characters, lm.vocab.unit)}, cells chosen on {half:,}, judged on the rest",
        ),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for name, side in (("label", "left"), ("share", "right"), ("", "left"), ("cell", "left"), ("", "left")):
        table.add_column(name, justify=side, no_wrap=True)
    for name in ("fit", "held out", "95 %", "needed", "control", "last two", "cells", "clamp: label", "other"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in findings.rows:
        word, style = _STATUS[row.status]
        table.add_row(row.label, f"{row.share:.1%}", word, *_numbers(row), style=style)
    console.print(table)
    shifts = (
        f"control: best of the same with labels shifted, in 19 of 20 shifts; {SHIFTS} keep chance finds under {FDR:.0%}"
    )
    console.print(
        Text(
            f"AUC, ρ: rank correlation; 95 %: interval of the held-out score, by block bootstrap; nearly: it reaches what is "
            f"needed\n{shifts}\nlast two: what the last two characters tell; a cell no better is an "
            "echo\nclamp: rise of the loss, in nats a character, with the cell held where it is off the label",
            "dim",
        )
    )
    n = findings.passes.size
    rule = f"AUC ≥ {(1 + MIN_EFFECT[True]) / 2:g} or ρ ≥ {MIN_EFFECT[False]:g} held out, above the control and the last two"
    console.print(
        Text.assemble((f"{int(findings.passes.sum())} of {n:,} cells pass ({findings.share:.1%})", "bold"), f": {rule}")
    )
    for note in findings.notes:
        console.print(Text(note, "yellow"), soft_wrap=True)


def _numbers(row: CellFinding) -> list[str]:
    if row.layer is None:
        return ["–"] * 11
    measure = "AUC" if row.measure == "AUC" else "ρ"
    cell = f"{'−' if row.sign < 0 else ' '}{row.state} {row.layer}:{row.unit}"
    scores = [row.threshold, row.control, row.last_two]
    rises = [row.clamp.label_nats, row.clamp.other_nats] if row.clamp else [None, None]
    shown = ["–" if value is None else f"{value:.3f}" for value in scores]
    interval = "–" if row.low is None or math.isnan(row.low) else f"{row.low:.2f}–{row.high:.2f}"
    return [
        cell,
        measure,
        f"{row.fit:.3f}",
        f"{row.held_out:.3f}",
        interval,
        *shown,
        str(row.passing),
        *("" if value is None else f"{value:+.3f}" for value in rises),
    ]
