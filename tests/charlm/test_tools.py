"""What is done with a model: evaluate, score, novelty, balance, n-grams, timeline, the Python API."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from babbling import SMALL, babble
from hypothesis import given
from hypothesis import strategies as st

from fastlstm.charlm import CharLM, CharLMError, train
from fastlstm.charlm.balance import balance
from fastlstm.charlm.evaluate import targets
from fastlstm.charlm.ngram import NGrams
from fastlstm.charlm.novelty import Known, edit_distances
from fastlstm.charlm.timeline import measure, page, points


@pytest.fixture
def lm(small_run):
    return small_run.load()


@pytest.fixture
def lines_run(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(babble(30, seed).replace("\n", "").strip() for seed in range(700)))
    return train(str(path), tmp_path / "lines_run", lines=True, **SMALL)


def alone(lm, text):
    """Nats of each character of a text, one model call a prefix: slow and plain."""
    ids = torch.from_numpy(lm.vocab.encode(lm.vocab.from_text(text)).astype(np.int64))[:, None]
    with torch.no_grad():
        scores, _ = lm.model(ids[:-1])
    return torch.nn.functional.cross_entropy(scores[:, 0], ids[1:, 0], reduction="none").numpy()


def test_evaluating_a_file_is_reading_it(lm, tmp_path):
    """A short file is scored as one stream from a newline."""
    text = babble(400, 5)
    (tmp_path / "other.txt").write_text(text)
    result = lm.evaluate("other.txt")
    assert result.characters == 400
    assert result.nats == pytest.approx(alone(lm, "\n" + text).sum(), rel=1e-4)
    assert result.bits_per_char == pytest.approx(result.nats_per_char / math.log(2))
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_char))


def test_many_streams_with_warm_up_are_close_to_one(lm, tmp_path):
    text = babble(20_000, 6)
    (tmp_path / "other.txt").write_text(text)
    assert lm.evaluate("other.txt").nats == pytest.approx(alone(lm, "\n" + text).sum(), rel=1e-3)


def test_bytes_and_characters_differ(tmp_path):
    path = tmp_path / "umlauts.txt"
    path.write_text(babble(20_000).replace("a", "ä"))
    result = train(str(path), tmp_path / "run", **SMALL).load().evaluate()
    assert result.bytes > 1.02 * result.characters
    assert result.bits_per_byte < result.bits_per_char
    lm = train(str(path), tmp_path / "bytes", bytes=True, **SMALL).load()
    raw = lm.evaluate()
    held = lm.held(lm.corpus(), "val")
    assert raw.bytes == len(held)
    assert raw.characters == len(held) - bytes(held.ids[targets(held)]).count(0xA4)
    assert raw.nats_per_char * raw.characters == pytest.approx(raw.nats)


def test_evaluate_refuses_unknown_characters_and_other_texts(lm, text, tmp_path):
    (tmp_path / "other.txt").write_text("a€")
    with pytest.raises(CharLMError, match="1 character that the model never saw: '€'"):
        lm.evaluate("other.txt")
    text.write_text(text.read_text() + "more")
    with pytest.raises(CharLMError, match="is not the text this model learned"):
        lm.evaluate()


def test_the_text_it_learned_is_known_under_another_name(lm, text, lines_run, tmp_path):
    (tmp_path / "copy.txt").write_bytes(text.read_bytes())
    assert lm.evaluate("copy.txt") == lm.evaluate()
    assert lm.evaluate("copy.txt", "all").characters > 10 * lm.evaluate().characters
    (tmp_path / "other.txt").write_text(text.read_text()[:-1])
    assert lm.evaluate("other.txt").characters == pytest.approx(lm.evaluate("copy.txt", "all").characters, abs=1)
    listed = lines_run.load()
    (tmp_path / "list.txt").write_bytes(Path(listed.saved.corpus["name"]).read_bytes())
    assert listed.evaluate("list.txt") == listed.evaluate()


def test_scores_of_running_text_and_of_lines(lm, lines_run):
    lines = ["the cat sat", "on a mat", "tttt"]
    together = alone(lm, "\n" + "\n".join(lines) + "\n")
    scored = lm.score(lines)
    assert [one.line for one in scored] == lines
    np.testing.assert_allclose(np.concatenate([one.nats for one in scored]), together, rtol=1e-3, atol=1e-4)
    single = lines_run.load()
    for one in single.score(lines * 100)[:3]:
        np.testing.assert_allclose(one.nats, alone(single, "\n" + one.line + "\n"), rtol=1e-3, atol=1e-4)
        assert one.total == pytest.approx(one.mean * (len(one.line) + 1), rel=1e-5)


def test_the_python_api(small_run, lines_run):
    lm = CharLM.load(small_run.folder)
    text = lm.sample(length=50, prime="The ", seed=1)
    assert text.startswith("The ")
    assert len(text) == 54
    assert lm.sample(length=50, prime="The ", seed=1, num=2)[0] == text
    names = CharLM.load(lines_run.best).sample(num=5, seed=1)
    assert len(names) == 5
    assert not any("\n" in name for name in names)


def test_saving_in_half_precision(small_run, tmp_path):
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


def test_ngrams_are_distributions():
    ids = np.random.default_rng(0).integers(0, 5, 300)
    model = NGrams(ids, 5)
    for context in ([0, 1, 2, 3, 4], [4, 4, 4, 4, 4], list(ids[10:15])):
        p = np.zeros(6)
        for last in range(5):
            p += np.exp(-np.array(model.nats(np.array([*context, last]), np.array([5]))))
        assert p == pytest.approx(np.ones(6))


def test_bigrams_against_counting_by_hand():
    """Interpolated Kneser-Ney of order 2, written with dictionaries."""
    text = [int(c) for c in "0102010301020104"]
    pairs = list(itertools.pairwise(text))
    V = 5

    def discounted(counts, discount, lower):
        total = sum(counts.values())
        return lambda w: max(counts.get(w, 0) - discount, 0) / total + discount * len(counts) / total * lower(w)

    def discount(numbers):
        one, two = numbers.count(1), numbers.count(2)
        return one / (one + 2 * two) if one else 0.5

    kept = {w: len({a for a, b in set(pairs) if b == w}) for w in {b for _, b in pairs}}
    unigram = discounted(kept, discount([kept.get(w, 0) for w in set(text)]), lambda w: 1 / V)
    count = {pair: pairs.count(pair) for pair in set(pairs)}
    D = discount(list(count.values()))
    model = NGrams(np.array(text), V, 2)
    for a, w in itertools.product(range(4), range(5)):
        after = {b: n for (first, b), n in count.items() if first == a}
        expected = discounted(after, D, unigram)(w) if after else unigram(w)
        found = math.exp(-model.nats(np.array([a, w]), np.array([1]))[1])
        assert found == pytest.approx(expected), (a, w)


def test_longer_ngrams_do_better_on_text(lm):
    held = lm.held(lm.corpus(), "val")
    nats = lm.baseline(held)
    assert len(nats) == 6
    assert nats[0] > nats[1] > nats[2]
    assert len(targets(held)) == len(held)


@given(st.text("abc", max_size=6), st.lists(st.text("abc", min_size=1, max_size=7), min_size=1, max_size=5))
def test_edit_distance(line, others):
    def plain(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            new = [i]
            for j, y in enumerate(b, 1):
                new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
            row = new
        return row[-1]

    known = Known(others, [])
    lines = known.lines
    assert edit_distances(line, known._codes, known._lengths).tolist() == [plain(line, other) for other in lines]


def test_novelty():
    known = Known(["Anna", "Bert", "Carla"], ["Dora", "Anna"])
    assert [known.kind(name) for name in ("Anna", "Dora", "Emil")] == ["train", "val", "new"]
    verdict = known.judge("Carl")
    assert (verdict.kind, verdict.nearest, verdict.distance) == ("new", "Carla", 1)
    assert known.judge("Anna").distance == 0


def test_what_a_model_knows_is_its_split(lines_run, lm):
    for model in (lines_run.load(), lm):
        corpus = model.corpus()
        known = Known.of(corpus, model.divide(corpus))
        assert known.train
        assert known.val
        assert len(known.val) < 0.2 * len(known.train)


def tally(text):
    return {one.name: (one.opened, one.closed, one.stray) for one in balance(text)}


def test_balance_of_python():
    code = 'def f(a[1], "x\\"(", \'it\'):  # ( "\n"""doc " \'(\' ""\\""" more""" {) ] "open\n\'\'\'never (closed'
    assert tally(code) == {
        "( )": (1, 1, 1),
        "[ ]": (1, 1, 1),
        "{ }": (1, 0, 0),
        "' ' and \" \"": (3, 2, 0),
        '""" """': (2, 1, 0),
        "# …": (1, 1, 0),
    }


def test_balance_of_c():
    code = "int f(int a) { // one (\n  /* two { */ return g(\"}\", '{'[0]; }\n/* open (;\n"
    assert tally(code) == {
        "( )": (2, 1, 0),
        "[ ]": (1, 1, 0),
        "{ }": (1, 1, 0),
        "' ' and \" \"": (2, 2, 0),
        "/* */": (2, 1, 0),
        "// …": (1, 1, 0),
    }


def test_the_standard_library_is_balanced():
    import textwrap

    with open(textwrap.__file__) as stream:
        assert all(one.share == 1 for one in balance(stream.read()))


def test_timeline_measures():
    words = {"the", "cat", "sat", "mat"}
    found = measure('x the cat  xyzzy said "sat" and "mat x', words)
    assert found["known"] == pytest.approx(4 / 7)
    assert found["doubled"] == pytest.approx(1 / 9)
    assert found["quotes"] == pytest.approx(2 / 3)
    assert measure("", words) == {"known": None, "short": None, "doubled": None, "quotes": None}


def test_timeline_of_a_run(text, tmp_path):
    result = train(str(text), tmp_path / "run", **{**SMALL, "max_epochs": 3, "sample_every": 200, "sample_length": 200})
    found = points(result.folder)
    assert [point.iteration for point in found] == [200, 400, 600]
    assert found[-1].nats < found[0].nats
    assert all(point.known is not None for point in found)
    rows = [json.loads(line) for line in (result.folder / "samples.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [point.text for point in found]
    with pytest.raises(CharLMError, match=r"has no samples: train with --sample-every"):
        points(tmp_path)


def test_the_page_shows_text_as_text(text, tmp_path):
    result = train(str(text), tmp_path / "run", **{**SMALL, "sample_every": 200})
    (point,) = points(result.folder)
    evil = point.__class__(**{**vars(point), "text": "<script>alert(1)</script>\x1b[31m & \u202e"})
    html = page("a <b>", [evil])
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "a &lt;b&gt;" in html
    assert "\x1b" not in html
    assert not re.search(r"https?://", html)


def test_tensorboard(text, tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    from fastlstm.charlm.tensorboard import TensorBoard

    result = train(str(text), tmp_path / "run", reporter=TensorBoard(), **SMALL)
    events = event.EventAccumulator(str(result.folder)).Reload()
    assert events.Scalars("val/nats")[-1].value == pytest.approx(result.nats)
    assert len(events.Scalars("train/nats")) > 10
