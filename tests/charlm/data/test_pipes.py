"""Texts that can be read only once: standard input and pipes are read once, kept, and found again."""

from __future__ import annotations

import gc
import os
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastlstm.charlm import CharLM, CharLMError, train
from fastlstm.charlm.data import corpora, pipes
from tests.charlm.babbling import SMALL


@contextmanager
def pipe_of(content: bytes):
    """`/dev/fd/N` of a pipe that a thread writes to, as `<(…)` gives."""
    out, into = os.pipe()

    def write():
        with open(into, "wb") as stream:
            stream.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield f"/dev/fd/{out}"
    finally:
        os.close(out)
        writer.join()


@contextmanager
def stdin_of(content: bytes):
    before = os.dup(0)
    with pipe_of(content) as name:
        os.dup2(int(name.rpartition("/")[2]), 0)
        try:
            yield
        finally:
            os.dup2(before, 0)
            os.close(before)


def test_which_names_are_pipes(text, tmp_path):
    os.mkfifo(tmp_path / "queue.txt")
    with pipe_of(b"") as name:
        assert pipes.is_pipe(name)
    for name in ("-", "/dev/stdin", "/dev/null", str(tmp_path / "queue.txt")):
        assert pipes.is_pipe(name), name
    for name in (str(text), str(tmp_path), "names", "nowhere", "x" * 5000, "/dev"):
        assert not pipes.is_pipe(name), name


@pytest.mark.parametrize("kind", ["-", "/dev/stdin", "<(…)", "fifo"])
def test_training_on_a_pipe_is_training_on_its_text(text, small_run, tmp_path, kind):
    """The same model; the text is in the folder of the run, which can be resumed and evaluated, from elsewhere too."""
    content = text.read_bytes()
    if kind == "<(…)":
        with pipe_of(content) as name:
            done = train(name, **SMALL)
    elif kind == "fifo":
        os.mkfifo("queue.txt")
        writer = threading.Thread(target=lambda: Path("queue.txt").write_bytes(content))
        writer.start()
        done = train("queue.txt", **SMALL)
        writer.join()
    else:
        with stdin_of(content):
            done = train(kind, **SMALL)
    folder = {"-": "stdin", "/dev/stdin": "stdin", "<(…)": "pipe", "fifo": "queue"}[kind]
    assert done.folder == Path("runs", folder)
    assert (done.folder / "piped.txt").read_bytes() == content
    expected = small_run.load().model.state_dict()
    assert all((value == expected[name]).all() for name, value in done.load().model.state_dict().items())
    moved = done.folder.rename(tmp_path / "moved")
    assert train(None, moved, resume=True, max_epochs=2).iteration == 2 * done.iteration
    assert CharLM.load(moved).evaluate().nats_per_char > 0


def test_two_trainings_on_pipes_are_two_runs(text):
    folders = []
    for _ in range(2):
        with pipe_of(text.read_bytes()) as name:
            folders.append(str(train(name, **SMALL).folder))
    assert folders == ["runs/pipe", "runs/pipe-2"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe\x00"])
def test_a_pipe_without_a_usable_text_leaves_no_folder(tmp_path, content):
    with pipe_of(content) as name, pytest.raises(CharLMError):
        train(name, **SMALL)
    with stdin_of(content), pytest.raises(CharLMError):
        train("-", "deep/run", **SMALL)
    assert os.listdir(tmp_path) == []


def test_a_resume_with_a_pipe_is_refused(text, small_run):
    with pytest.raises(CharLMError, match="a run is resumed with the text in its folder: leave - out"):
        train("-", small_run.folder, resume=True)


def test_closed_standard_input_is_one_line(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))}
    command = f"{shlex.quote(sys.executable)} -m fastlstm train - <&-"
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: cannot read -: standard input is closed; give it a text, or name a file\n"
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_evaluated_and_its_copy_removed(lm, text):
    """A list too, which is read twice to see whether it is the model's own."""
    content = text.read_bytes()
    with pipe_of(content) as name:
        assert lm.evaluate(name, "all").nats == pytest.approx(lm.evaluate(str(text), "all").nats)
    with pipe_of(content) as name:
        source, note = corpora.find(name, "utf-8")
    assert note is None
    copy = source.files[0]
    assert "".join(source.chunks()) == "".join(source.chunks()) == content.decode()
    assert copy.exists()
    del source
    gc.collect()
    assert not copy.exists()


def test_a_list_from_a_pipe_is_known_as_the_models_own(lines_run):
    lm = lines_run.load()
    path = Path(lm.saved.corpus["name"])
    with pipe_of(path.read_bytes()) as name:
        assert lm.evaluate(name).nats == pytest.approx(lm.evaluate().nats)
