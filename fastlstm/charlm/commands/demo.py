"""`fastlstm demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def demo(
    checkpoint_dir: Annotated[Path, typer.Option(help="folder of the run; one that is there is replaced")] = Path(
        "runs/demo"
    ),
    seconds: Annotated[float, typer.Option(help="of training at most, on a slow or busy machine")] = 300.0,
) -> None:
    """Train on given names, about a minute on two cores, and make up fifty new ones."""
    from ..demo import demo as run

    run(checkpoint_dir, seconds, Console(highlight=False))
