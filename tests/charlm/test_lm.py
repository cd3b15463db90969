"""The Python API of a trained model: load, sample, score, save."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastlstm.charlm import CharLM, CharLMError, train
from tests.charlm.plain import nats_alone


def test_scores_of_running_text_and_of_lines(lm, lines_run):
    lines = ["the cat sat", "on a mat", "tttt"]
    together = nats_alone(lm, "\n" + "\n".join(lines) + "\n")
    scored = lm.score(lines)
    assert [one.line for one in scored] == lines
    np.testing.assert_allclose(np.concatenate([one.nats for one in scored]), together, rtol=1e-3, atol=1e-4)
    single = lines_run.load()
    for one in single.score(lines * 100)[:3]:
        np.testing.assert_allclose(one.nats, nats_alone(single, "\n" + one.line + "\n"), rtol=1e-3, atol=1e-4)
        assert one.total == pytest.approx(one.mean * (len(one.line) + 1), rel=1e-5)


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
