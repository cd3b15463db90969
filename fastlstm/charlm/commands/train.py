"""`fastlstm train`: its options are the fields of TrainConfig."""

from __future__ import annotations

import inspect
import os
import shlex
from contextlib import suppress
from dataclasses import fields
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..config import PRESETS, TrainConfig
from ..errors import command
from ..training.progress import NATS_PER_BIT, Reporter, Reporters, Terminal
from ..training.runs import train as run
from ..training.tensorboard import TensorBoard

_TYPES = {"str": str, "bool": bool, "int": int, "float": float}


def _parameter(name: str, value_type: type, default: Any, text: str, panel: str, *aliases: str) -> inspect.Parameter:
    """One option of the command. Its value is None where it was not given, so that presets and resumed runs stand."""
    flag = "--" + name.replace("_", "-")
    if value_type is not bool and default != "":
        text += f" [dim]\\[{default}][/]"
    info = typer.Option(flag, *aliases, help=text, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value_type | None, info]
    )


def _signature() -> inspect.Signature:
    corpus = inspect.Parameter(
        "corpus",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[
            str | None,
            typer.Argument(
                help="A text file, a folder of them, - for standard input, or a built-in corpus: names, python, shakespeare",
                show_default=False,
            ),
        ],
    )
    run = "Run"
    extra = [
        _parameter("checkpoint_dir", str, "runs/CORPUS", "folder of the run: best and last checkpoint, log.jsonl", run),
        _parameter("preset", str, "char-rnn", f"where the other defaults come from: {', '.join(PRESETS)}", run),
        _parameter("resume", bool, "", "go on with the run in --checkpoint-dir, exactly where it was saved", run),
        _parameter("overwrite", bool, "", "throw away a run that is in --checkpoint-dir", run),
        _parameter("init_from", str, "", "start with the weights of this checkpoint", run),
        _parameter("device", str, "auto", "auto, cpu, cuda", run),
        _parameter("tensorboard", bool, "", "also write TensorBoard files into --checkpoint-dir", run),
    ]
    options = [
        _parameter(
            item.name,
            _TYPES[item.type],
            item.default,
            item.metadata["help"],
            item.metadata["panel"],
            *item.metadata["aliases"],
        )
        for item in fields(TrainConfig)
    ]
    return inspect.Signature([corpus, *options, *extra])


def train(corpus: str | None = None, **flags: Any) -> None:
    """Train a character model. The defaults are char-rnn's.

    Writes best.safetensors, last.safetensors and log.jsonl into the folder of the run.
    """
    # Of several processes only the first one prints.
    console = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")
    terminal = Terminal(console)
    options = {name: value for name, value in flags.items() if value is not None}
    reporters: list[Reporter] = [terminal]
    if options.pop("tensorboard", False):
        reporters.append(TensorBoard())
    try:
        result = run(corpus, reporter=Reporters(*reporters), **options)
    finally:
        with suppress(OSError):  # the terminal may have gone
            terminal.stop()
    console.print(
        Text.assemble(
            (f"{result.reason}: ", "bold"),
            f"{result.iteration:,} iterations, best validation loss ",
            (f"{result.nats:.4f} nats", "bold green"),
            f" ({result.nats / NATS_PER_BIT:.4f} bits) a {result.unit}\n",
            f"  {result.best}\n  {result.last}\n  {result.folder / 'log.jsonl'}\n",
            ("try it: ", "dim"),
            f"{command()} sample {shlex.quote(str(result.folder))}",
        ),
        soft_wrap=True,
    )


train.__signature__ = _signature()  # type: ignore[attr-defined]
