"""The page that `fastlstm visualize` writes, without a browser: what is in it, what it weighs, that text stays data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from fastlstm.charlm import CharLMError, trace
from fastlstm.charlm.analysis import excerpt
from fastlstm.charlm.page import visualize
from tests.charlm.planted import quoted_prose, untrained, with_quote_cell

HOSTILE = (
    "</script><script>window.hit = 1</script><!-- <img src=x onerror='window.hit = 2'> -->\n"
    "\x00\x01\x07\x1b[31m\x7f\x85 \u200f\u202eright\u2066 to left\u2069 שלום \u2028\u2029 e\u0301\u0301"
    " 👩‍👩‍👧 漢字 &amp; \ufeff\ufffe {{ 7*7 }}\n"
)
TEXT = quoted_prose(4000)
SYMBOLS = "".join(sorted(set(TEXT + HOSTILE)))


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text), -15)


@pytest.fixture(scope="module")
def made():
    lm = with_quote_cell(SYMBOLS, 0, 3)
    return lm, visualize.page(lm, excerpt.of_text(lm, TEXT, "prose"), title="a page")


def test_the_page_holds_the_model_s_numbers(made):
    lm, html = made
    data, traced = data_of(html), trace(lm, TEXT)
    np.testing.assert_array_equal(np.frombuffer(unpack(data["ids"]), "<u4"), traced.ids)
    np.testing.assert_array_equal(np.frombuffer(unpack(data["top"]), "<u4").reshape(-1, 5), traced.top)
    np.testing.assert_array_equal(np.frombuffer(unpack(data["p"]), "<f4").reshape(-1, 5), traced.top_p)
    entropy, surprise = np.frombuffer(unpack(data["facts"]), "<f4").reshape(2, -1)
    np.testing.assert_array_equal(entropy, traced.entropy)
    np.testing.assert_array_equal(surprise[1:], traced.surprise[1:])
    assert len(data["colours"]) == len(data["rest"]) == 48
    for name in ("0:3", "1:20"):
        layer, unit = map(int, name.split(":"))
        c = traced.c[layer, :, unit]
        np.testing.assert_allclose(
            np.frombuffer(unpack(data["colours"][name]), "i1") / 127, np.tanh(c), atol=1 / 254 + 1e-6
        )
        rest = data["rest"][name]
        steps = np.frombuffer(unpack(rest["data"]), "u1").reshape(5, -1)
        reach = rest["high"] - rest["low"]
        np.testing.assert_allclose(rest["low"] + steps[0] / 255 * reach, c, atol=reach / 255 + 1e-3)
        for k in (0, 1, 3):
            np.testing.assert_allclose(steps[1 + k] / 31, traced.gates[layer, :, k, unit], atol=1 / 62 + 1e-6)
        np.testing.assert_allclose(2 * steps[3] / 31 - 1, traced.gates[layer, :, 2, unit], atol=1 / 31 + 1e-6)


def test_the_best_explained_cell_comes_first(made):
    data = data_of(made[1])
    assert data["order"][0] == [0, 3]
    assert data["found"]["rows"][0]["label"] == "inside quotes"
    assert data["found"]["passing"] == 1
    example = data["found"]["rows"][0]["example"]
    assert '"' in TEXT[example : example + 80]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.elements = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def test_hostile_text_stays_data():
    lm = untrained(SYMBOLS)
    html = visualize.page(lm, excerpt.of_text(lm, HOSTILE + TEXT[:300], HOSTILE[:40]), title=HOSTILE)
    plain = visualize.page(lm, excerpt.of_text(lm, TEXT[:400], "plain"), title="plain")
    tags = []
    for one in (html, plain):
        parser = Tags()
        parser.feed(one)
        tags.append([tag for tag, _ in parser.elements])
    assert tags[0] == tags[1]
    assert html.count("<script") == 2
    links = [attrs[name] for _, attrs in parser.elements for name in ("src", "href") if name in attrs]
    assert links == ["data:,"]
    html.encode()


def test_only_the_page_s_own_script_may_run(made):
    html = made[1]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "default-src 'none'" in policy
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy.replace("&#39;", "'")


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "layers"), [(256, 2), (512, 3)])
def test_10000_characters_stay_under_15_mb(hidden, layers):
    """Of a model whose gates are as noisy as they come."""
    text = quoted_prose(10_000)
    lm = untrained("".join(sorted(set(text))), hidden, layers, scale=0.5)
    html = visualize.page(lm, excerpt.of_text(lm, text), title="big")
    assert len(html.encode()) < 15e6
    data = data_of(html)
    assert len(data["colours"]) > 256
    assert len(data["rest"]) > 50


def test_the_page_holds_the_training_of_a_run(small_run, text, monkeypatch):
    lm = small_run.load()
    (small_run.folder / "samples.jsonl").write_text(
        json.dumps({"iteration": 5, "epoch": 0.5, "text": "The cat</script>\x1b"}) + "\n"
    )
    html = visualize.page(lm, excerpt.read(lm, None, 0, 150), run=small_run.folder, title="run")
    training = data_of(html)["training"]
    assert [row[0] for row in training["train"]] == sorted(row[0] for row in training["train"])
    assert training["val"]
    assert training["samples"][0]["text"] == "The cat</script>␛"
    assert "known words" in training["samples"][0]["facts"]
    text.unlink()  # without its corpus the samples stay
    assert visualize._samples(small_run.folder)[0]["facts"] == {}
    assert data_of(html)["found"] is None


def test_characters_the_model_never_saw_are_marked():
    lm = untrained("ab \n")
    page = visualize.page(lm, excerpt.of_text(lm, "ab☃ba<" * 50, "snow"), title="odd")
    data = data_of(page)
    assert data["unknown"]["2"][0] == "☃"
    assert "never saw" in data["notes"][0]
    surprise = np.frombuffer(unpack(data["facts"]), "<f4")[300:]
    assert surprise[2] == -1
    assert surprise[3] > 0


def test_a_missing_jinja2_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    lm = untrained("ab")
    with pytest.raises(CharLMError, match=r"pip install 'fastlstm\[visualize\]'"):
        visualize.page(lm, excerpt.of_text(lm, "ab"))
