"""Where a text is: recorded with the model, found again from elsewhere, and left out of what is given away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastlstm.charlm import CharLM, CharLMError, checkpoint, train
from fastlstm.charlm.data import recorded
from fastlstm.charlm.data.corpus import CorpusOptions, load
from tests.charlm.babbling import SMALL

OPTIONS = CorpusOptions()


def test_a_record_has_both_paths(text, tmp_path, monkeypatch):
    corpus = load("babble.txt", OPTIONS)
    record = recorded.corpus_record(corpus, Path("runs/x"))
    assert record["name"] == "babble.txt"
    assert record["path"] == str(text)
    assert record["path_from_run"] == os.path.join("..", "..", "babble.txt")


def test_a_text_of_the_data_folder_is_recorded_by_its_name(text, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLSTM_DATA", str(tmp_path))
    monkeypatch.chdir("/")
    record = recorded.corpus_record(load("babble.txt", OPTIONS), Path("/runs/x"))
    assert set(record) == {"name", "sha256", "size", "symbols"}
    assert recorded.find_recorded(record, None, OPTIONS)[0].files == [text]


def test_the_text_of_the_recorded_size_is_found_first(tmp_path):
    run = tmp_path / "runs/x"
    near, far = tmp_path / "near.txt", tmp_path / "far.txt"
    record = {"name": "near.txt", "path": str(far), "path_from_run": "../../near.txt", "size": 3}

    def found():
        return recorded.find_recorded(record, run, OPTIONS)[0].files

    near.write_text("abc")
    assert found() == [near]
    far.write_text("def")
    assert found() == [near]
    near.write_text("abcd")
    assert found() == [far]
    far.unlink()
    assert found() == [near]  # another text: what reads it says so
    near.unlink()
    with pytest.raises(
        CharLMError, match=r"the text of this model is gone: there is no .*near.txt nor .*far.txt; put it"
    ):
        found()


@pytest.mark.parametrize("path", ["/dev/zero", 7, ["a"], "x" * 5000])
def test_a_record_with_an_odd_path_does_not_mislead(text, path):
    record = {"name": "babble.txt", "path": path, "path_from_run": path, "size": text.stat().st_size}
    assert [file.name for file in recorded.find_recorded(record, Path("run"), OPTIONS)[0].files] == ["babble.txt"]


def test_a_saved_model_names_no_path_of_the_machine(text, tmp_path):
    result = train("babble.txt", "run", **SMALL)
    assert checkpoint.read(result.best).corpus["path"] == str(text)
    result.load().save(tmp_path / "given.safetensors")
    assert str(tmp_path).encode() not in (tmp_path / "given.safetensors").read_bytes()
    assert CharLM.load(tmp_path / "given.safetensors").evaluate().nats_per_char > 0
