"""The loss on a text: of files, of parts of the model's own corpus, in characters and bytes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fastlstm.charlm import CharLMError, train
from fastlstm.charlm.evaluate import targets
from tests.charlm.babbling import SMALL, babble
from tests.charlm.plain import nats_alone


def test_evaluate_scores_a_file_as_one_stream(lm, tmp_path):
    """A short file is scored as one stream from a newline."""
    text = babble(400, 5)
    (tmp_path / "other.txt").write_text(text)
    result = lm.evaluate("other.txt")
    assert result.characters == 400
    assert result.nats == pytest.approx(nats_alone(lm, "\n" + text).sum(), rel=1e-4)
    assert result.bits_per_char == pytest.approx(result.nats_per_char / math.log(2))
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_char))


def test_many_streams_with_warm_up_are_close_to_one(lm, tmp_path):
    text = babble(20_000, 6)
    (tmp_path / "other.txt").write_text(text)
    assert lm.evaluate("other.txt").nats == pytest.approx(nats_alone(lm, "\n" + text).sum(), rel=1e-3)


def test_losses_are_given_per_byte_and_per_character(tmp_path):
    path = tmp_path / "umlauts.txt"
    path.write_text(babble(20_000).replace("a", "ä"))
    result = train(str(path), tmp_path / "run", **SMALL).load().evaluate()
    assert result.bytes > 1.02 * result.characters
    assert result.bits_per_byte < result.bits_per_char
    lm = train(str(path), tmp_path / "bytes", bytes=True, **SMALL).load()
    by_bytes = lm.evaluate()
    held = lm.eval_text(lm.corpus(), "val")
    assert by_bytes.bytes == len(held)
    assert by_bytes.characters == len(held) - bytes(held.ids[targets(held)]).count(0xA4)
    assert by_bytes.nats_per_char * by_bytes.characters == pytest.approx(by_bytes.nats)


def test_evaluate_refuses_unknown_characters_and_other_texts(lm, text, tmp_path):
    (tmp_path / "other.txt").write_text("a€")
    with pytest.raises(CharLMError, match="1 character that the model never saw: '€'"):
        lm.evaluate("other.txt")
    text.write_text(text.read_text() + "more")
    with pytest.raises(CharLMError, match="is not the text this model learned"):
        lm.evaluate()


def test_own_corpus_is_recognised_under_another_name(lm, text, lines_run, tmp_path):
    (tmp_path / "copy.txt").write_bytes(text.read_bytes())
    assert lm.evaluate("copy.txt") == lm.evaluate()
    assert lm.evaluate("copy.txt", "all").characters > 10 * lm.evaluate().characters
    (tmp_path / "other.txt").write_text(text.read_text()[:-1])
    assert lm.evaluate("other.txt").characters == pytest.approx(lm.evaluate("copy.txt", "all").characters, abs=1)
    listed = lines_run.load()
    (tmp_path / "list.txt").write_bytes(Path(listed.saved.corpus["name"]).read_bytes())
    assert listed.evaluate("list.txt") == listed.evaluate()
