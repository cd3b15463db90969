"""The timeline of a run: its measures, its samples, its page."""

from __future__ import annotations

import json
import re

import pytest

from fastlstm.charlm import CharLMError, train
from fastlstm.charlm.training.timeline import Share, measure, page, points, pooled
from tests.charlm.babbling import SMALL


def test_measures_of_a_text():
    words = {"the", "cat", "sat", "mat"}
    measures = measure('x the cat  xyzzy said "sat" and "mat x', words)
    assert measures["known"] == Share(4, 7)
    assert measures["doubled"] == Share(1, 9)
    assert measures["quotes"] == Share(2, 3)
    assert measure("", words) == dict.fromkeys(("known", "short", "doubled", "quotes"), Share(0, 0))


def test_a_share_of_few_things_is_shown_in_numbers():
    assert [str(Share(*pair)) for pair in ((0, 0), (0, 1), (2, 3), (9, 9), (9, 12), (1, 300))] == [
        "–", "0 of 1", "2 of 3", "9 of 9", "75%", "0%",
    ]  # fmt: skip


def test_a_chart_of_few_quotes_counts_over_neighbouring_samples():
    """One or two quotes a sample, now paired, now not, jumped between 0 and 100 %."""
    shares = [Share(2, 2), Share(0, 1)] * 15
    assert {round(share.part / share.whole, 1) for share in pooled(shares)} <= {0.6, 0.7}
    assert all(share.whole >= 10 for share in pooled(shares))
    assert pooled([Share(2, 2), Share(0, 1)]) == [Share(2, 3)] * 2  # there are no more
    many = [Share(k, 70) for k in range(10)]
    assert pooled(many) == many
    assert pooled([]) == []


def test_points_are_the_logged_samples_with_their_losses(text, tmp_path):
    result = train(str(text), tmp_path / "run", **{**SMALL, "max_epochs": 3, "sample_every": 200, "sample_length": 200})
    samples = points(result.folder)
    assert [point.iteration for point in samples] == [200, 400, 600]
    assert samples[-1].nats < samples[0].nats
    assert all(point.known.whole > 0 for point in samples)
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
