"""The commands that use a trained model, and what they share."""

from __future__ import annotations

from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="a checkpoint, the folder of a run, or a model that comes along: names")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda", rich_help_panel="Run")]


def register(app: typer.Typer) -> None:
    from . import cells, demo, inspect, measure, sample, timeline, visualize

    app.command()(sample.sample)
    app.command()(measure.evaluate)
    app.command()(measure.score)
    app.command(name="inspect")(inspect.inspect_model)
    app.command()(timeline.timeline)
    app.command()(cells.cells)
    app.command()(visualize.visualize)
    app.command()(demo.demo)
