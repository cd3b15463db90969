"""What trains, what validates, and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.charlm.data.corpus import CorpusOptions, load
from fastlstm.charlm.data.splits import WARM_UP, divide, held_out
from fastlstm.charlm.errors import CharLMError
from tests.charlm.babbling import babble


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.txt").write_text(babble(10_000))
    return load("a.txt", CorpusOptions())


@pytest.fixture
def items(tmp_path):
    (tmp_path / "l.txt").write_text("\n".join(f"item {n:04}" for n in range(1000)))
    return load("l.txt", CorpusOptions(lines=True, unique=True))


def test_streams_are_char_rnns(corpus):
    """Against char-rnn's own recipe: cut to a multiple of B·T, targets one ahead (wrapping), B rows, T columns each."""
    B, T = 4, 50
    ids = corpus.ids[: len(corpus) // (B * T) * B * T].astype(int)
    targets = np.roll(ids, -1)
    rows, target_rows = ids.reshape(B, -1), targets.reshape(B, -1)
    data = divide(corpus, "streams", 0.05, B, T, 0)
    total = rows.shape[1] // T
    assert data.train.batches == int(total * 0.95)
    for k in range(data.train.batches):
        x, y = data.train.batch(0, k)
        assert (rows[:, k * T : (k + 1) * T] == x.T).all()
        assert (target_rows[:, k * T : (k + 1) * T] == y.T).all()
        assert x.flags.c_contiguous
    val = np.concatenate([np.stack([x, y], -1) for x, y, counted in data.val.chunks(37) if counted.all()])
    assert (rows[:, data.train.batches * T :] == val[..., 0].T).all()
    assert (target_rows[:, data.train.batches * T :] == val[..., 1].T).all()
    assert len(data.val) == rows[:, data.train.batches * T :].size
    spans = np.concatenate([data.train_spans, data.val_spans])
    assert sorted(position for span in spans for position in range(*span)) == list(range(len(ids)))


def test_tinyshakespeare_has_char_rnns_423_and_23_batches():
    batches = 1_115_394 // 2500
    assert (int(batches * 0.95), batches - int(batches * 0.95)) == (423, 23)


def test_contiguous_keeps_the_end_unseen(corpus):
    data = divide(corpus, "contiguous", 0.1, 4, 50, 0)
    n = int(len(corpus) * 0.9)
    seen = np.concatenate([np.concatenate(data.train.batch(0, k)).ravel() for k in range(data.train.batches)])
    assert len(seen) == data.train.batches * 50 * 4 * 2
    last = max(int(o) for o in data.train.origins) + data.train.batches * 50
    assert last < n  # the last target is still training text
    assert len(data.val) == len(corpus) - n
    assert (data.train_spans.tolist(), data.val_spans.tolist()) == ([[0, n]], [[n, len(corpus)]])


@pytest.mark.parametrize("total", [2, 100, 129, 1000, 5000])
@pytest.mark.parametrize("context", [0, 1, 50, 300])
@pytest.mark.parametrize("streams", [1, 3, 8])
def test_held_out_scores_every_character_once(total, context, streams):
    ids = np.arange(context + total)
    held = held_out(ids, context, streams)
    scored = sorted(int(target) for _, y, counted in held.chunks(64) for target in y[counted])
    assert scored == list(range(max(context, 1), context + total))
    assert len(held) == len(scored)
    assert (held.skip[1:] == WARM_UP).all()


def test_lines_do_not_overlap_and_shuffle_by_epoch(items):
    data = divide(items, "lines", 0.05, 5, 20, seed=7)
    train, val = ({items.text(*span) for span in spans.tolist()} for spans in (data.train_spans, data.val_spans))
    assert len(val) == 50
    assert not train & val
    assert len(train) + len(val) == 1000

    def epoch(number, seed=7):
        split = divide(items, "lines", 0.05, 5, 20, seed).train
        text = split.text
        return items.vocab.decode(text.at(number, np.arange(text.total)))

    first, second = epoch(0), epoch(1)
    assert first != second
    assert epoch(0) == first
    assert epoch(0, seed=8) != first
    assert set(first.splitlines(True)) == set(second.splitlines(True)) == train
    assert set(items.vocab.decode(data.val.ids[-len(data.val) :]).splitlines(True)) == val


def test_validation_lines_do_not_depend_on_the_seed(items):
    one, two = (divide(items, "lines", 0.05, 5, 20, seed) for seed in (1, 2))
    assert (one.val_spans == two.val_spans).all()


def test_processes_share_the_streams(corpus):
    whole = divide(corpus, "streams", 0.05, 4, 50, 0)
    parts = [whole.train.share(rank, 2).batch(0, 3)[0] for rank in range(2)]
    assert (np.concatenate(parts, 1) == whole.train.batch(0, 3)[0]).all()
    assert sum(len(whole.val.share(rank, 3)) for rank in range(3)) == len(whole.val)


def test_a_text_too_short_for_a_batch_is_refused(corpus):
    with pytest.raises(CharLMError, match=r"10,000 characters, too few .* 50 × 200 = 10,000: choose a smaller"):
        divide(corpus, "streams", 0.05, 50, 200, 0)
    with pytest.raises(
        CharLMError, match=r"leaves 0 training batches and 9,000 characters to validate with --val-frac"
    ):
        divide(corpus, "contiguous", 0.9, 4, 1000, 0)
