"""Characters that a vocabulary does not have: refused by name, left out, or added at its end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlstm.charlm.data.corpus import CorpusOptions, load
from fastlstm.charlm.data.unknown import check_policy, encode
from fastlstm.charlm.data.vocab import Vocabulary
from fastlstm.charlm.errors import CharLMError

VOCAB = Vocabulary("\nabc")


@given(st.text("\nabcdé世", min_size=1))
def test_skip_leaves_out_what_the_vocabulary_lacks(text):
    left = "".join(symbol for symbol in text if symbol in VOCAB)
    if not left:
        with pytest.raises(CharLMError, match="nothing is left with --unknown skip"):
            encode(VOCAB, text, "skip")
        return
    result = encode(VOCAB, text, "skip")
    assert VOCAB.decode(result.ids) == left
    assert result.vocab is VOCAB
    assert result.kept.tolist() == [symbol in VOCAB for symbol in text]
    assert (result.note is None) == (left == text)


@given(st.text("\nabcdé世"))
def test_add_grows_the_vocabulary_at_its_end(text):
    result = encode(VOCAB, text, "add")
    assert result.vocab.symbols == VOCAB.symbols + "".join(sorted(set(text) - set(VOCAB.symbols)))
    assert result.vocab.decode(result.ids) == text
    assert result.kept.all()


def test_error_names_what_is_missing():
    with pytest.raises(CharLMError, match="poem has 1 character that the model never saw: 'é'"):
        encode(VOCAB, "abé", "error", "poem")
    assert encode(VOCAB, "ab", "error").note is None


def test_a_byte_vocabulary_knows_everything():
    vocab = Vocabulary.of_bytes()
    for policy in ("error", "skip", "add"):
        result = encode(vocab, vocab.from_text("é世"), policy)
        assert result.ids.tolist() == list("é世".encode())
        assert (result.vocab, result.note) == (vocab, None)


def test_the_note_counts_every_character_and_names_each_once():
    note = encode(VOCAB, "aéaé世", "skip", "poem").note
    assert note == "poem has 3 characters that the model never saw ('é' '世'): left out"
    assert encode(VOCAB, "é", "add", "poem").note.endswith("('é'): added to its vocabulary")


def test_a_policy_that_does_not_exist_is_refused():
    with pytest.raises(CharLMError, match="--unknown is 'guess', expected error, skip, add"):
        encode(VOCAB, "a", "guess")
    with pytest.raises(CharLMError, match="--unknown is 'add', expected error, skip"):
        check_policy("add", ("error", "skip"))


@pytest.mark.parametrize(
    ("unknown", "symbols", "ids"),
    [("skip", "\nabc", "ab\nc"), ("add", "\nabcé", "aéb\néc")],
)
def test_a_corpus_is_read_with_each_policy(tmp_path, unknown, symbols, ids):
    path = tmp_path / "text.txt"
    path.write_text("aéb\néc", encoding="utf-8")
    corpus = load(str(path), CorpusOptions(), VOCAB, unknown=unknown)
    assert corpus.vocab.symbols == symbols
    assert corpus.text() == ids
    assert corpus.notes[0].startswith(f"{path} has 2 characters that the model never saw ('é')")
    with pytest.raises(CharLMError, match="has 1 character that the model never saw: 'é'"):
        load(str(path), CorpusOptions(), VOCAB)


def test_lines_of_unknown_characters_alone_disappear(tmp_path):
    """Items are what is left; blanks at the ends of a line, dropped anyhow, are not counted as unknown."""
    path = tmp_path / "items.txt"
    path.write_text("ab\t\né\néc \n\nab", encoding="utf-8")
    corpus = load(str(path), CorpusOptions(lines=True, unique=True), VOCAB, unknown="skip")
    assert [corpus.item(k) for k in range(len(corpus.starts) - 1)] == ["ab", "c"]
    assert "has 2 characters" in corpus.notes[0]
    assert not load(str(path.parent / "items.txt"), CorpusOptions(lines=True), Vocabulary("\nabcé")).notes


def test_lines_need_a_newline(tmp_path):
    path = tmp_path / "items.txt"
    path.write_text("ab\nc", encoding="utf-8")
    with pytest.raises(CharLMError, match=r"no newline in its vocabulary, so it cannot read .* as lines"):
        load(str(path), CorpusOptions(lines=True), Vocabulary("abc"), unknown="skip")


def test_ids_grow_a_type_when_the_vocabulary_does():
    vocab = Vocabulary("".join(map(chr, range(256))))
    result = encode(vocab, "世", "add")
    assert (result.ids.dtype, result.ids.tolist()) == (np.uint16, [256])
