"""`fastlstm sample`: text from a model, and how new or how well-formed it is."""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data.text_source import small_text
from ..errors import CharLMError
from ..lm import CharLM
from ..sampling import sample as sampling
from ..sampling.novelty import Known, Verdict
from ..sampling.sample import Drawing
from ..sampling.syntax_check import balance as balances
from .common import ModelName

COLOURS = {"new": "green", "val": "yellow", "train": "dim"}


def sample(
    model: ModelName,
    temperature: Annotated[
        str, typer.Option(help="above 1 bolder, below 1 safer, 0 as --argmax; a list 0.5,0.8,1 shows them in turn")
    ] = "1",
    top_k: Annotated[
        int | None, typer.Option(help="only the K most likely characters; 0 for all", show_default=False)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="only the most likely that together have probability P", show_default=False)
    ] = None,
    prime: Annotated[str, typer.Option("--prime", "--primetext", help="text to go on from", show_default=False)] = "",
    prime_file: Annotated[Path | None, typer.Option(help="go on from a file", show_default=False)] = None,
    length: Annotated[
        int | None, typer.Option(help="characters [dim]\\[2000; one item of a model of lines][/]", show_default=False)
    ] = None,
    stop: Annotated[str | None, typer.Option(help="end where this text appears", show_default=False)] = None,
    num: Annotated[
        int | None, typer.Option(help="samples at once [dim]\\[1; 20 of a model of lines][/]", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="same seed, same text [dim]\\[a new one each time][/]", show_default=False)
    ] = None,
    argmax: Annotated[bool, typer.Option("--argmax", help="always the most likely character")] = False,
    unique: Annotated[
        bool, typer.Option("--unique", help="mark each line: in the training set, in validation, new")
    ] = False,
    balance: Annotated[bool, typer.Option("--balance", help="report brackets, quotes and comments left open")] = False,
) -> None:
    """Draw text from a model, shown as it is drawn."""
    if stop == "":
        raise CharLMError("--stop is empty, expected the text to end at")
    lm = CharLM.load(model)
    drawing = lm.drawing(
        top_k=top_k,
        top_p=top_p,
        prime=_prime(prime, prime_file, lm.config.encoding),
        length=length,
        stop=stop,
        num=num if num is not None else 20 if lm.of_lines and length is None and stop is None else 1,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        argmax=argmax,
    )
    sampling.check(lm.vocab, drawing)  # before anything is shown
    known = Known.of(corpus := lm.corpus(), lm.divide(corpus)) if unique else None
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    texts = _sweep(lm, drawing, _temperatures(temperature), prime, known, messages)
    if seed is None and not argmax:
        messages.print(f"[dim]seed {drawing.seed}[/]")
    if balance:
        _report_balance(messages, "\n".join(texts))


def _sweep(
    lm: CharLM, drawing: Drawing, temperatures: list[float], prime: str, known: Known | None, messages: Console
) -> list[str]:
    """Draws at one temperature after another, shows what is drawn, and returns it. known: to report how new it is."""
    texts: list[str] = []
    for value in temperatures:
        one = replace(drawing, temperature=value)
        if len(temperatures) > 1:
            messages.rule(Text(f"temperature {value:g}"), align="left", style="dim")
        drawn = _show(lm, one, echo=prime, quiet=known is not None)
        if known is not None:
            lines = [line for text in drawn for line in (prime + text).splitlines()]
            _report_novelty([known.judge(line) for line in lines if line.strip()])
        texts += drawn
    return texts


def _temperatures(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise CharLMError(f"--temperature is {text!r}, expected a number or a list like 0.5,0.8,1") from error


def _prime(prime: str, file: Path | None, encoding: str) -> str:
    """The prime as it is given on the line or in a file."""
    if file is None:
        return prime
    if prime:
        raise CharLMError("--prime and --prime-file do not go together: put all of the prime into the file")
    return small_text(file, encoding)


def _show(lm: CharLM, drawing: Drawing, echo: str, quiet: bool) -> list[str]:
    """Draws and, unless `quiet`, prints; one stream appears as it grows. echo: the prime, shown before each text."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if drawing.num > 1 or quiet:
        texts = sampling.draw(lm.model, lm.vocab, drawing)
        for number, text in enumerate(texts if not quiet else [], 1):
            if drawing.stop != "\n":
                console.rule(Text(str(number)), align="left", style="dim")
            console.print(Text.assemble((echo, "bold"), text))
        return texts
    console.print(Text(echo, "bold"), end="")
    pieces = []
    for (piece,) in sampling.stream(lm.model, lm.vocab, drawing):
        pieces.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return ["".join(pieces)]


def _report_novelty(verdicts: list[Verdict]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("line", "is", "nearest in training", "edits"):
        table.add_column(name, justify="right" if name == "edits" else "left", overflow="fold")
    for one in verdicts:
        near = (one.nearest, str(one.distance)) if one.distance else ("", "")
        table.add_row(Text(one.line), Text(one.kind, COLOURS[one.kind]), *(Text(part, "dim") for part in near))
    console.print(table)
    new = sum(one.kind == "new" for one in verdicts)
    val = sum(one.kind == "val" for one in verdicts)
    seen = len(verdicts) - new - val
    console.print(
        f"[bold green]{new / max(1, len(verdicts)):.0%} new[/] ({new} of {len(verdicts)}; {val} in the validation set, "
        f"{seen} in the training set)"
    )


def _report_balance(console: Console, text: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("opened", "closed", "stray", "share"):
        table.add_column(name, justify="right")
    for tally in balances(text):
        colour = "green" if tally.share > 0.95 else "yellow" if tally.share > 0.8 else "red"
        share = Text(f"{tally.share:.1%}", colour) if tally.opened + tally.stray else Text("–", "dim")
        row = (f"{tally.opened:,}", f"{tally.closed:,}", f"{tally.stray:,}", share)
        table.add_row(Text(tally.name), *row)
    console.print(table)
    console.print("[dim]stray: closed without having been opened; share: closed ones among all of them[/]")
