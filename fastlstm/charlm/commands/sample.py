"""`fastlstm sample`: samples text from a model; reports its novelty and its syntax."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import output
from ..errors import CharLMError
from ..lm import CharLM
from ..sampling.novelty import LineNovelty, TrainingLines
from ..sampling.sample import Sampling, check_sampling, sample_chunks, sample_texts
from ..sampling.syntax_check import check_syntax
from .common import ModelName

COLOURS = {"new": "green", "val": "yellow", "train": "dim"}
LINE_WIDTH = 60  # widest column of lines in the report of --unique; longer lines are shown whole and push their row


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
    """Sample text from a model, shown as it is generated."""
    if stop == "":
        raise CharLMError("--stop is empty, expected the text to end at")
    lm = CharLM.load(model)
    sampling = lm.sampling(
        top_k=top_k,
        top_p=top_p,
        prime=_prime(lm, prime, prime_file),
        length=length,
        stop=stop,
        num=num if num is not None else 20 if lm.of_lines and length is None and stop is None else 1,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        argmax=argmax,
    )
    check_sampling(lm.vocab, sampling)  # before anything is shown
    messages = output.console(stderr=True, soft_wrap=True)
    texts = _sweep(lm, sampling, _temperatures(temperature), unique, messages)
    if seed is None and not argmax:
        messages.print(f"seed {sampling.seed}", style="dim")
    if balance:
        _report_balance(messages, "\n".join(texts))


def _sweep(lm: CharLM, sampling: Sampling, temperatures: list[float], unique: bool, messages: Console) -> list[str]:
    """Sample at each temperature, print the texts and return them, primes included. unique: report novelty instead."""
    training_lines = TrainingLines.of_split(corpus := lm.corpus(), lm.divide(corpus)) if unique else None
    texts: list[str] = []
    for value in temperatures:
        at_temperature = replace(sampling, temperature=value)
        if len(temperatures) > 1:
            messages.rule(Text(f"temperature {value:g}"), align="left", style="dim")
        samples = _show(lm, at_temperature, quiet=training_lines is not None)
        if training_lines is not None:
            lines = [line for text in samples for line in text.split("\n")]
            _report_novelty([training_lines.novelty(line) for line in lines if line.strip()])
        texts += samples
    return texts


def _temperatures(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise CharLMError(f"--temperature is {text!r}, expected a number or a list like 0.5,0.8,1") from error


def _prime(lm: CharLM, prime: str, file: Path | None) -> str:
    """The prime, given as an option or in a file."""
    if file is None:
        return prime
    if prime:
        raise CharLMError("--prime and --prime-file do not go together: put all of the prime into the file")
    return lm.read_text(file)


def _show(lm: CharLM, sampling: Sampling, quiet: bool) -> list[str]:
    """Sample and, unless `quiet`, print; a single text appears as it is generated. Returns the texts, primes included."""
    prime = sampling.prime
    if sampling.num > 1 or quiet:
        texts = sample_texts(lm.model, lm.vocab, sampling)
        rules = output.console()
        for number, text in enumerate(texts if not quiet else [], 1):
            if sampling.stop != "\n":
                rules.rule(Text(str(number)), align="left", style="dim")
            output.write((prime, "bold"), text + "\n")
        return [prime + text for text in texts]
    output.write((prime, "bold"))
    pieces = []
    for (piece,) in sample_chunks(lm.model, lm.vocab, sampling):
        pieces.append(piece)
        output.write(piece)
    output.write("\n")
    return [prime + "".join(pieces)]


def _report_novelty(novelties: list[LineNovelty]) -> None:
    """A table of the lines, as they are: a console's table would fold them and widen their tabs."""
    rows = [
        (n.line, n.origin, n.nearest, str(n.distance)) if n.distance else (n.line, n.origin, "", "") for n in novelties
    ]
    names = ("line", "is", "nearest in training", "edits")
    widths = [
        max(cell_len(name), *(min(LINE_WIDTH, cell_len(row[k])) for row in rows)) if rows else cell_len(name)
        for k, name in enumerate(names)
    ]

    def padded(row: tuple[str, ...]) -> list[str]:
        blanks = [" " * max(0, width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        return [row[0] + blanks[0] + "  ", row[1] + blanks[1] + "  ", row[2] + blanks[2] + "  ", blanks[3] + row[3]]

    output.write(("".join(padded(names)), "dim"), "\n")
    for row in rows:
        line, origin, *near = padded(row)
        output.write(line, (origin, COLOURS[row[1]]), ("".join(near).rstrip(), "dim"), "\n")
    new = sum(novelty.origin == "new" for novelty in novelties)
    val = sum(novelty.origin == "val" for novelty in novelties)
    seen = len(novelties) - new - val
    output.write(
        (f"{new / max(1, len(novelties)):.0%} new", "bold green"),
        f" ({new} of {len(novelties)}; {val} in the validation set, {seen} in the training set)\n",
    )


def _report_balance(console: Console, text: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("opened", "closed", "stray", "share"):
        table.add_column(name, justify="right")
    for pair in check_syntax(text):
        colour = "green" if pair.share > 0.95 else "yellow" if pair.share > 0.8 else "red"
        share = Text(f"{pair.share:.1%}", colour) if pair.opened + pair.stray else Text("–", "dim")
        row = (f"{pair.opened:,}", f"{pair.closed:,}", f"{pair.stray:,}", share)
        table.add_row(Text(pair.name), *row)
    console.print(table)
    console.print("stray: closed without having been opened; share: closed ones among all of them", style="dim")
