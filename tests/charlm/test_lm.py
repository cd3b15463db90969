"""The Python API of a trained model: load, sample, score, save."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastlstm.charlm import CharLM, CharLMError, train
from tests.charlm.babbling import SMALL
from tests.charlm.plain import nats_alone


def test_score_reads_each_text_as_it_is(lm, lines_run):
    """Nothing is added: n numbers for n characters; an item of a model of lines ends with its newline."""
    texts = ["the cat sat", "on a mat\nThe dogs run.\n", "t", ""]
    scored = lm.score(texts)
    assert [one.text for one in scored] == texts
    assert [len(one.nats) for one in scored] == [11, 23, 1, 0]
    for one in scored[:3]:
        np.testing.assert_allclose(one.nats, nats_alone(lm, "\n" + one.text), rtol=1e-3, atol=1e-4)
        assert one.total == pytest.approx(one.mean * len(one.text), rel=1e-5)
    assert scored[3].total == 0.0
    assert np.isnan(scored[3].mean)
    single = lines_run.load()
    for one in single.score(["the cat sat", "on a mat", "tttt"] * 100)[:3]:
        np.testing.assert_allclose(one.nats, nats_alone(single, "\n" + one.text + "\n"), rtol=1e-3, atol=1e-4)


def test_score_of_nothing_is_nothing(lm, lines_run):
    assert lm.score([]) == []
    assert lines_run.load().score([]) == []
    with pytest.raises(CharLMError, match="score takes several texts, in a list"):
        lm.score("text")


def test_a_model_without_a_newline_scores(tmp_path):
    """Its first character has the probability 1/V, as in sampling; the others follow from it."""
    (tmp_path / "text.txt").write_text("abc cab bca " * 200)
    model = train("text.txt", "run", **SMALL).load()
    assert "\n" not in model.vocab
    one, two = model.score(["abc c", "b"])
    np.testing.assert_allclose(one.nats[1:], nats_alone(model, "abc c"), rtol=1e-3, atol=1e-4)
    assert one.nats[0] == two.nats[0] == pytest.approx(np.log(4))


def test_score_skips_what_the_model_never_saw(lm):
    """The model does not read it: the others' numbers are those of the text without it."""
    with pytest.raises(CharLMError, match="the text has 1 character that the model never saw: 'é'"):
        lm.score(["thé cat"])
    one, without, nothing = (*lm.score(["thé cat"], unknown="skip"), *lm.score(["th cat"]), *lm.score(["é"], "skip"))
    assert np.isnan(one.nats).tolist() == [False, False, True, False, False, False, False]
    np.testing.assert_allclose(one.nats[~np.isnan(one.nats)], without.nats, rtol=1e-5)
    assert (one.total, one.mean) == (pytest.approx(without.total), pytest.approx(without.mean))
    assert nothing.total == 0.0
    with pytest.raises(CharLMError, match="--unknown is 'add', expected error, skip"):
        lm.score(["x"], unknown="add")


def test_evaluate_skips_what_the_model_never_saw(lm, tmp_path):
    (tmp_path / "odd.txt").write_text("The cät sat on a mat.\n" * 20, encoding="utf-8")
    (tmp_path / "plain.txt").write_text("The ct sat on a mat.\n" * 20)
    with pytest.raises(CharLMError, match=r"odd.txt has 1 character that the model never saw: 'ä'"):
        lm.evaluate("odd.txt")
    assert lm.evaluate("odd.txt", unknown="skip") == lm.evaluate("plain.txt")
    assert "20 characters that the model never saw ('ä'): left out" in lm.corpus("odd.txt", "skip").notes[0]


def test_a_byte_model_scores_bytes_that_are_not_utf8(tmp_path):
    """Its text is bytes: a file in another encoding is read as it is, line ends and all."""
    content = "Müller\r\nBöll\n".encode("latin-1")
    (tmp_path / "text.txt").write_bytes(content * 200)
    model = train("text.txt", "run", bytes=True, **SMALL).load()
    text = model.read_text(tmp_path / "text.txt")[: len(content)]
    (one,) = model.score([text])
    assert model.vocab.from_text(text).encode("latin-1") == content
    assert len(one.nats) == len(content)
    with pytest.raises(CharLMError, match=r"the text has '\\ud800' at 1, which has no UTF-8"):
        model.score(["a\ud800"])


def test_samples_continue_the_prime_and_repeat_with_the_seed(small_run, lines_run):
    lm = CharLM.load(small_run.folder)
    text = lm.sample(length=50, prime="The ", seed=1)
    assert text.startswith("The ")
    assert len(text) == 54
    assert lm.sample(length=50, prime="The ", seed=1, num=2)[0] == text
    names = CharLM.load(lines_run.best).sample(num=5, seed=1)
    assert len(names) == 5
    assert not any("\n" in name for name in names)


def test_half_precision_halves_the_file_and_keeps_the_loss(small_run, tmp_path):
    lm = CharLM.load(small_run.last)
    lm.save(tmp_path / "half.safetensors", torch.float16)
    lm.save(tmp_path / "full.safetensors")
    half = CharLM.load(tmp_path / "half.safetensors")
    half_size, full_size = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full"))
    weights = sum(value.numel() for value in lm.saved.weights.values())
    assert full_size - half_size == pytest.approx(2 * weights, abs=100)
    assert half.evaluate().nats == pytest.approx(lm.evaluate().nats, rel=1e-3)
    assert half.saved.metrics == lm.saved.metrics
    (tmp_path / "half.safetensors").rename(small_run.last)
    with pytest.raises(CharLMError, match="holds a model but no run"):
        train(None, small_run.folder, resume=True)
