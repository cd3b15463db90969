"""Novelty of sampled lines: membership in either set, the nearest training line, edit distances."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastlstm.charlm.sampling.novelty import TrainingLines, edit_distances


@given(st.text("abc", max_size=6), st.lists(st.text("abc", min_size=1, max_size=7), min_size=1, max_size=5))
def test_edit_distances_are_levenshtein_s(line, others):
    def plain(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            new = [i]
            for j, y in enumerate(b, 1):
                new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
            row = new
        return row[-1]

    training_lines = TrainingLines(others, [])
    lines = training_lines.lines
    assert edit_distances(line, training_lines._codes, training_lines._lengths).tolist() == [
        plain(line, other) for other in lines
    ]


def test_novelty_gives_the_set_the_nearest_line_and_its_distance():
    training_lines = TrainingLines(["Anna", "Bert", "Carla"], ["Dora", "Anna"])
    assert [training_lines.origin(name) for name in ("Anna", "Dora", "Emil")] == ["train", "val", "new"]
    novelty = training_lines.novelty("Carl")
    assert (novelty.origin, novelty.nearest, novelty.distance) == ("new", "Carla", 1)
    assert training_lines.novelty("Anna").distance == 0


def test_training_lines_of_a_model_are_its_split(lines_run, lm):
    for model in (lines_run.load(), lm):
        corpus = model.corpus()
        training_lines = TrainingLines.of_split(corpus, model.divide(corpus))
        assert training_lines.train
        assert training_lines.val
        assert len(training_lines.val) < 0.2 * len(training_lines.train)
