"""The timeline of a run: its measures, its samples, its page."""

from __future__ import annotations

import json
import re

import pytest

from fastlstm.charlm import CharLMError, train
from fastlstm.charlm.training.timeline import measure, page, points
from tests.charlm.babbling import SMALL


def test_measures_of_a_text():
    words = {"the", "cat", "sat", "mat"}
    measures = measure('x the cat  xyzzy said "sat" and "mat x', words)
    assert measures["known"] == pytest.approx(4 / 7)
    assert measures["doubled"] == pytest.approx(1 / 9)
    assert measures["quotes"] == pytest.approx(2 / 3)
    assert measure("", words) == {"known": None, "short": None, "doubled": None, "quotes": None}


def test_points_are_the_logged_samples_with_their_losses(text, tmp_path):
    result = train(str(text), tmp_path / "run", **{**SMALL, "max_epochs": 3, "sample_every": 200, "sample_length": 200})
    samples = points(result.folder)
    assert [point.iteration for point in samples] == [200, 400, 600]
    assert samples[-1].nats < samples[0].nats
    assert all(point.known is not None for point in samples)
    rows = [json.loads(line) for line in (result.folder / "samples.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [point.text for point in samples]
    with pytest.raises(CharLMError, match=r"has no samples: train with --sample-every"):
        points(tmp_path)


def test_timeline_page_escapes_text(text, tmp_path):
    result = train(str(text), tmp_path / "run", **{**SMALL, "sample_every": 200})
    (point,) = points(result.folder)
    evil = point.__class__(**{**vars(point), "text": "<script>alert(1)</script>\x1b[31m & \u202e"})
    html = page("a <b>", [evil])
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "a &lt;b&gt;" in html
    assert "\x1b" not in html
    assert not re.search(r"https?://", html)
