"""`fastlstm sample`."""

from __future__ import annotations

import secrets
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

Model = Annotated[
    str, typer.Argument(help="A checkpoint, the folder of a run, or a model that comes with fastlstm: names")
]


def sample(
    model: Model,
    temperature: Annotated[float, typer.Option(help="above 1 bolder, below 1 safer, 0 as --argmax")] = 1.0,
    prime: Annotated[str, typer.Option("--prime", "--primetext", help="text to go on from")] = "",
    length: Annotated[
        int | None, typer.Option(help="characters to draw [dim]\\[2000; one item for a model of lines][/]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed, the same text [dim]\\[a new one][/]")] = None,
    argmax: Annotated[bool, typer.Option("--argmax", help="always the most likely character")] = False,
    stop: Annotated[str | None, typer.Option(help="end where this text appears")] = None,
    num: Annotated[int | None, typer.Option(help="samples at once [dim]\\[1; 20 for a model of lines][/]")] = None,
) -> None:
    """Draw text from a model, shown as it is drawn."""
    from ..sample import Drawing, draw, stream
    from ..train import load_model

    net, saved = load_model(model)
    lines = bool(saved.config["lines"]) and length is None and stop is None
    drawing = Drawing(
        length=length or (1000 if lines else 2000),
        temperature=temperature,
        argmax=argmax,
        prime=prime.encode().decode("unicode_escape") if False else prime,
        stop="\n" if lines else stop or "",
        num=num or (20 if lines else 1),
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
    )
    console = Console(highlight=False, markup=False)
    if seed is None and not argmax and temperature:
        Console(stderr=True, style="dim", highlight=False).print(f"seed {drawing.seed}")
    if drawing.num == 1:
        console.print(Text(drawing.prime, "bold"), end="", soft_wrap=True)
        for (piece,) in stream(net, saved.vocab, drawing):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    for number, text in enumerate(draw(net, saved.vocab, drawing), 1):
        if not lines:
            console.rule(Text(f"{number}", "dim"), align="left", style="dim")
        console.print(Text.assemble((drawing.prime, "bold"), text), soft_wrap=True)
