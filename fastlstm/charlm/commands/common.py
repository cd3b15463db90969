"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="a checkpoint, the folder of a run, or a model that comes along: names")
]
TextName = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT",
        help="a file, folder or built-in corpus [dim]\\[what validated the model][/]",
        show_default=False,
    ),
]
Start = Annotated[int, typer.Option(help="skip this many characters of the text")]
UnknownPolicy = Annotated[
    str, typer.Option("--unknown", help="characters that the model never saw: error, or skip to leave them out")
]
