"""`fastlstm timeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .. import output as output_of
from ..checkpoint import write_atomic
from ..training.timeline import MEASURES, page, points, visible


def timeline(
    run: Annotated[Path, typer.Argument(help="the folder of a run that kept samples", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the page [dim]\\[RUN/timeline.html][/]", show_default=False)
    ] = None,
    lines: Annotated[int, typer.Option(min=0, help="lines of each sample to show here")] = 3,
) -> None:
    """How the text of a model grew while it was trained, here and as one page."""
    samples = points(run)
    console = output_of.console()
    for point in samples:
        loss = "" if point.nats is None else f"  {point.nats:.3f} nats"
        console.print(
            Text.assemble((f"iteration {point.iteration:,}", "bold"), (f"  epoch {point.epoch:.2f}{loss}", "dim"))
        )
        shown = [line for line in visible(point.text).split("\n") if line.strip()][:lines]
        for line in shown:
            output_of.write("    ", (line, "cyan"), "\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("iteration", "nats", *MEASURES.values()):
        table.add_column(name, justify="right")
    for point in samples:
        nats = "–" if point.nats is None else f"{point.nats:.3f}"
        measures = (str(getattr(point, name)) for name in MEASURES)
        table.add_row(f"{point.iteration:,}", nats, *measures)
    console.print()
    console.print(table)
    path = output or run / "timeline.html"
    write_atomic(path, page(f"How {run.resolve().name} learned to write", samples).encode(), "--output")
    console.print(Text(str(path), "dim"), soft_wrap=True)
