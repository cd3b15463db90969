"""Sampling text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastlstm
from fastlstm.charlm.data.vocab import Vocabulary
from fastlstm.charlm.errors import CharLMError
from fastlstm.charlm.model import CharModel
from fastlstm.charlm.sampling.sample import Sampling, sample_chunks, sample_texts

VOCAB = Vocabulary("\nabcdefg")


@pytest.fixture
def model():
    torch.manual_seed(3)
    model = CharModel(len(VOCAB), 8, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def test_the_same_seed_gives_the_same_text(model):
    one = sample_texts(model, VOCAB, Sampling(length=200, seed=5))
    assert sample_texts(model, VOCAB, Sampling(length=200, seed=5)) == one
    assert sample_texts(model, VOCAB, Sampling(length=200, seed=6)) != one
    assert len(one[0]) == 200


def test_a_stream_does_not_depend_on_its_neighbours(model):
    three = sample_texts(model, VOCAB, Sampling(length=50, num=3, seed=5))
    assert len(set(three)) == 3
    assert sample_texts(model, VOCAB, Sampling(length=50, num=1, seed=5)) == three[:1]


def test_argmax_is_a_loop_over_the_model(model):
    text = sample_texts(model, VOCAB, Sampling(length=30, argmax=True, prime="ab"))[0]
    expected = "ab"
    with torch.no_grad():
        for _ in range(30):
            scores, _ = model(torch.from_numpy(VOCAB.encode(expected).astype(np.int64))[:, None])
            expected += VOCAB.symbols[int(scores[-1, 0].argmax())]
    assert text == expected[2:]
    assert sample_texts(model, VOCAB, Sampling(length=30, temperature=0, prime="ab")) == [text]


def test_sampling_changes_neither_mode_nor_torch_s_generator(model):
    model.train()
    before = torch.get_rng_state()
    sample_texts(model, VOCAB, Sampling(length=10))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_options_reach_the_decoder(model):
    """Each option reaches the decoder: the text is what fastlstm.decode draws with it."""
    prime = torch.from_numpy(VOCAB.encode("ab").astype(np.int64))
    for options in ({}, {"temperature": 0.6}, {"top_k": 2}, {"top_p": 0.6}):
        ids = fastlstm.decode(model.rnn, model.out.weight, model.out.bias, prime, 40, num=3, seed=8, **options).ids
        expected = [VOCAB.decode(ids[:, b].numpy()) for b in range(3)]
        assert sample_texts(model, VOCAB, Sampling(length=40, num=3, seed=8, prime="ab", **options)) == expected


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_text_does_not_depend_on_the_size_of_pieces(model, rows):
    for sampling in (Sampling(length=50, num=3, seed=1), Sampling(length=50, num=3, seed=1, stop="ba")):
        pieces = list(sample_chunks(model, VOCAB, sampling, rows))
        assert ["".join(parts) for parts in zip(*pieces, strict=True)] == sample_texts(model, VOCAB, sampling)


def test_weights_of_nan_are_refused(model):
    with torch.no_grad():
        model.out.bias[2] = float("nan")
    with pytest.raises(CharLMError, match=r"the weights of the model hold NaN: 1 of 8 in out.bias; take an earlier"):
        sample_texts(model, VOCAB, Sampling(length=5))
    with torch.no_grad():
        model.out.bias[2] = 3e38
        model.out.weight[2] = 3e38
    with pytest.raises(CharLMError, match="predictions are not finite numbers: its weights are too large"):
        sample_texts(model, VOCAB, Sampling(length=50))


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.int8])
def test_numpy_s_integers_are_options(model, kind):
    plain = Sampling(length=20, num=2, seed=5, top_k=3)
    sampling = Sampling(length=kind(20), num=kind(2), seed=kind(5), top_k=kind(3), temperature=np.float32(1.0))
    assert sampling == plain
    assert type(sampling.seed) is int
    assert sample_texts(model, VOCAB, sampling) == sample_texts(model, VOCAB, plain)
    with pytest.raises(CharLMError, match=r"--length is 2.5, expected a whole number"):
        Sampling(length=2.5)


def test_a_stop_that_cannot_come_is_refused(model):
    with pytest.raises(CharLMError, match="the stop has 1 character that the model never saw"):
        sample_texts(model, VOCAB, Sampling(length=4, stop="b☃"))


def test_stop_ends_a_stream_and_is_left_out(model):
    whole = sample_texts(model, VOCAB, Sampling(length=400, num=4, seed=1))
    stop = whole[0][60:63]
    cut = sample_texts(model, VOCAB, Sampling(length=400, num=4, seed=1, stop=stop))
    assert cut == [text.split(stop)[0] for text in whole]


def test_pieces_add_up_and_hold_back_the_start_of_a_stop(model):
    whole = sample_texts(model, VOCAB, Sampling(length=300, seed=2))[0]
    stop = whole[100:104]
    seen = ""
    for (piece,) in sample_chunks(model, VOCAB, Sampling(length=300, seed=2, stop=stop), rows=1):
        seen += piece
        assert not (seen and stop.startswith(seen[-1]) and seen[-1] == stop[0] and whole.startswith(seen[:-1] + stop))
    assert seen == whole.split(stop)[0]


def test_a_vocabulary_without_newline_starts_anywhere():
    torch.manual_seed(0)
    model, vocab = CharModel(3, 4, 1).eval(), Vocabulary("abc")
    firsts = {text[0] for text in sample_texts(model, vocab, Sampling(length=5, num=40))}
    assert firsts == {"a", "b", "c"}


def test_a_prime_outside_the_vocabulary_is_named(model):
    with pytest.raises(CharLMError, match="the prime has 1 character that the model never saw: 'é'"):
        sample_texts(model, VOCAB, Sampling(prime="abé"))


@pytest.mark.parametrize(
    "options",
    [{"length": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"num": 0}, {"seed": -1}],
)
def test_bad_options_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(CharLMError, match=f"--{name.replace('_', '-')} is {value}, expected"):
        Sampling(**options)


def test_byte_models_write_only_utf8():
    torch.manual_seed(0)
    vocab = Vocabulary.of_bytes()
    model = CharModel(256, 8, 1).eval()  # untrained: every byte about as likely as another
    for text in sample_texts(model, vocab, Sampling(length=101, num=8, prime="né")):
        assert "\ufffd" not in text
        assert 101 <= len(text.encode()) <= 104
        assert len(set(text)) > 30
