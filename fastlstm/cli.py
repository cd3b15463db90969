"""The command `fastlstm`: train, sample, doctor and the rest. Bad input ends in one line and exit code 2."""

from __future__ import annotations

import os
import re
import sys

import typer
from rich.console import Console

import fastlstm

from .charlm.commands import train as train_command
from .charlm.commands import use as use_commands
from .charlm.errors import CharLMError
from .charlm.runs import Interrupted

app = typer.Typer(
    help="Character models on fused LSTM kernels: train one, sample from it, see what this machine can run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
train_command.register(app)
use_commands.register(app)


@app.command()
def doctor() -> None:
    """Versions, platform, threads, and which backends can run here; for each that cannot, why and what to do."""
    from .doctor import report

    report(Console())


def normalise(argv: list[str]) -> list[str]:
    """char-rnn's spelling of options (`-rnn_size`, `--rnn_size`) as ours (`--rnn-size`)."""
    out = []
    for index, token in enumerate(argv):
        if token == "--":
            return out + argv[index:]
        flag, sep, value = token.partition("=")
        if re.fullmatch(r"--[A-Za-z]\w*", flag) or re.fullmatch(r"-[A-Za-z]\w{2,}", flag):
            token = "--" + flag.lstrip("-").replace("_", "-") + sep + value
        out.append(token)
    return out


def main(argv: list[str] | None = None) -> None:
    """The entry point; never returns."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    rank = os.environ.get("RANK")  # set by torchrun
    try:
        app(normalise(sys.argv[1:] if argv is None else argv))
    except Interrupted as error:
        if not rank or rank == "0":
            errors.print(str(error))
        sys.exit(130)
    except (CharLMError, fastlstm.BackendError) as error:
        errors.print(f"error (rank {rank}): " if rank else "error: ", style="bold red", end="")
        errors.print(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
