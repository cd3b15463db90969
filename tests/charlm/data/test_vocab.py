"""Characters to ids and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlstm.charlm.data.vocab import UNKNOWN, Vocabulary
from fastlstm.charlm.errors import CharLMError, count, shown

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT)
def test_encoded_text_decodes_to_itself(text):
    vocab = Vocabulary("".join(sorted(set(text))))
    ids = vocab.encode(text)
    assert vocab.decode(ids) == text
    assert ids.dtype == vocab.dtype


@given(TEXT, TEXT)
def test_unknown_characters_are_looked_up_as_minus_one(known, text):
    vocab = Vocabulary("".join(sorted(set(known))))
    expected = [vocab.symbols.find(symbol) for symbol in text]
    assert vocab.lookup(text).tolist() == expected
    assert UNKNOWN == -1


@given(TEXT)
def test_a_byte_vocabulary_encodes_utf8(text):
    vocab = Vocabulary.of_bytes()
    symbols = vocab.from_text(text)
    assert vocab.encode(symbols).tolist() == list(text.encode())
    assert vocab.to_text(symbols) == text


def test_ids_have_the_smallest_type_that_fits():
    assert Vocabulary("ab").dtype == np.uint8
    assert Vocabulary("".join(map(chr, range(300)))).dtype == np.uint16
    assert Vocabulary("".join(map(chr, [*range(0xD800), *range(0xE000, 0x13000)]))).dtype == np.uint32


def test_errors_name_what_is_missing():
    with pytest.raises(CharLMError, match=r"the prime has 2 characters that the model never saw: 'é' '世'"):
        Vocabulary("abc").encode("a世é世", "the prime")
    with pytest.raises(CharLMError, match="twice"):
        Vocabulary("aba")


def test_count_and_shown_word_messages():
    assert [count(1, "entry"), count(2, "entry"), count(1200, "batch")] == ["1 entry", "2 entries", "1,200 batches"]
    assert shown("ba\nab") == "'\\n' 'a' 'b'"
    assert shown("abcdef", 2) == "'a' 'b' …"
