"""`fastlstm sample` and what else is done with a trained model."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    from .sample import sample

    app.command()(sample)
