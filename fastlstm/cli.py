"""The command `fastlstm`: train, sample, doctor and the rest. Bad input ends in one line and exit code 2."""

from __future__ import annotations

import os
import re
import sys
from itertools import pairwise
from pathlib import Path

import typer
from rich.text import Text

import fastlstm

from .charlm import output
from .charlm.commands import register
from .charlm.errors import CharLMError, command
from .charlm.training.runs import Interrupted

app = typer.Typer(
    help="Character models on fused LSTM kernels: train one, sample from it, see what this machine can run.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fastlstm {fastlstm.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", help="Show the version.", is_eager=True, callback=_show_version),
) -> None:
    """Options of the command itself."""


@app.command()
def doctor(
    verify: bool = typer.Option(
        False,
        "--verify",
        help="Check and time the GPU kernels on every GPU model here, in at most three minutes each; later calls follow the "
        "record.",
    ),
    full: bool = typer.Option(
        False,
        "--full",
        help="With --verify: every case through every kernel, Triton's too; three quarters of an hour by estimate.",
    ),
    matrix: bool = typer.Option(
        False,
        "--matrix",
        help="Print which backend and which GPU kernel takes which feature in which type, as Markdown.",
    ),
) -> None:
    """Versions, platform, threads, and which backends can run here; for each that cannot, why and what to do.

    With --verify the exit code is 0 where all is right, 1 where a kernel gave wrong results, 2 where there is no GPU.
    """
    from .doctor import report

    if full and not verify:
        raise typer.BadParameter("--full goes with --verify")
    if matrix:
        from .support_matrix import render

        print(render())
        return
    if verify:
        from .verify.run import verify as verify_here

        raise typer.Exit(verify_here(output.console(soft_wrap=True).print, full=full))
    report(output.console())


def normalise(argv: list[str]) -> list[str]:
    """char-rnn's spelling of options (`-rnn_size`, `--rnn_size`) as this command's (`--rnn-size`)."""
    out = []
    for index, token in enumerate(argv):
        if token == "--":
            return out + argv[index:]
        flag, sep, value = token.partition("=")
        if re.fullmatch(r"--[A-Za-z]\w*", flag) or re.fullmatch(r"-[A-Za-z]\w{2,}", flag):
            token = "--" + flag.lstrip("-").replace("_", "-") + sep + value
        out.append(token)
    return out


# Flags of char-rnn that have another name here, by command.
ELSEWHERE = {
    "train": {
        "--gpuid": "--device cpu or --device cuda:0",
        "--opencl": "--device",
        "--train-frac": "--val-frac, and what does not validate trains",
        "--savefile": "--checkpoint-dir",
        "--model": "nothing: every model is an LSTM",
        "--accurate-gpu-timing": "nothing: times are right",
    },
    "sample": {
        "--sample": "--argmax for always the most likely character",
        "--gpuid": "nothing: text is drawn on the CPU",
        "--opencl": "nothing: text is drawn on the CPU",
        "--verbose": "nothing: see fastlstm inspect",
    },
}


def char_rnn(argv: list[str]) -> list[str]:
    """char-rnn's `--data-dir DIR` as the corpus DIR/input.txt; of flags that it has alone, what to use instead."""
    elsewhere, out, words = ELSEWHERE.get(argv[0] if argv else "", {}), [], iter(argv)
    for word in words:
        flag, sep, value = word.partition("=")
        if flag in elsewhere:
            raise CharLMError(f"char-rnn's {flag} is here {elsewhere[flag]}")
        if flag == "--data-dir" and argv[0] == "train":
            folder = Path(value if sep else next(words, ""))
            word = str(folder / "input.txt" if (folder / "input.txt").is_file() else folder)
        out.append(word)
    return out


# What the parser raises for a wrong line. (typer has click inside from 0.26 on, before it was a package of its own.)
UsageError = typer.BadParameter.__base__


def wrong_line(error: Exception, argv: list[str]) -> str:
    """What is wrong with a command line, in one line: the parser's words, what was given, where to look."""
    text = error.format_message().rstrip(".")
    parameter = getattr(error, "param", None)
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    values = [value for flag, value in pairwise(words) if flag in getattr(parameter, "opts", ())]
    if values:
        text += f" (given: {values[-1]!r})"
    elif getattr(parameter, "param_type_name", "") == "argument" and getattr(parameter, "help", ""):
        text += f": {Text.from_markup(parameter.help).plain}"
    names = {one.name or one.callback.__name__ for one in app.registered_commands}
    called = [command(), *(word for word in argv[:1] if word in names)]
    return f"{text}{'' if text.endswith('?') else ';'} see {' '.join(called)} --help"


def say(text: str, prefix: str = "") -> None:
    """One line on standard error. prefix: bold and red before it."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # a file name may hold a newline
    output.console(stderr=True, soft_wrap=True).print(Text.assemble((prefix, "bold red"), line))


def main(argv: list[str] | None = None) -> None:
    """The entry point; never returns."""
    rank = os.environ.get("RANK")  # set by torchrun
    prefix = f"error (rank {rank}): " if rank else "error: "
    argv = sys.argv[1:] if argv is None else argv
    try:
        with output.guarded():
            argv = char_rnn(normalise(argv))
            code = app(argv or ["--help"], standalone_mode=False)
        sys.exit(code if argv else 2)
    except UsageError as error:
        say(wrong_line(error, argv), prefix)
        sys.exit(2)
    except typer.Abort:
        say("input ended before an answer came", prefix)
        sys.exit(1)
    except Interrupted as error:
        if not rank or rank == "0":
            say(str(error))
        sys.exit(130)
    except (CharLMError, fastlstm.BackendError) as error:
        say(str(error), prefix)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        say(f"{error.filename or 'the operating system'}: {error.strerror or error}", prefix)
        sys.exit(2)
    except MemoryError as error:
        say(
            f"there is not enough memory ({str(error) or 'an allocation failed'}): take a shorter text, or a smaller model",
            prefix,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
