"""The tool's part of the command line; fastlstm/cli.py puts it together."""

from __future__ import annotations

import typer

from . import cells, demo, inspect, measure, sample, timeline, train, visualize


def register(app: typer.Typer) -> None:
    """Add all commands of the tool, in the order in which `fastlstm --help` lists them."""
    app.command()(train.train)
    app.command()(sample.sample)
    app.command()(measure.evaluate)
    app.command()(measure.score)
    app.command(name="inspect")(inspect.inspect_model)
    app.command()(timeline.timeline)
    app.command()(cells.cells)
    app.command()(visualize.visualize)
    app.command()(demo.demo)
