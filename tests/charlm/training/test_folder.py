"""The folder of a run is held by one training at a time, and left as it was by one that never began."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm.charlm import CharLMError, train
from fastlstm.charlm.training import folder as folders
from fastlstm.charlm.training.folder import InUseError, take, take_free
from fastlstm.charlm.training.progress import Reporter
from tests.charlm.babbling import SMALL


class Meanwhile(Reporter):
    """Does something in the middle of a run."""

    def __init__(self, action):
        self.action, self.result = action, None

    def row(self, run, row):
        if row["iteration"] == 5:
            self.result = self.action(run)


def test_a_second_training_in_a_folder_is_refused(text, tmp_path):
    """Named by the user: one line, and the first run ends as if nothing had been."""
    folder, refused = tmp_path / "run", []

    def second(run):
        for changes in ({}, {"overwrite": True}):
            with pytest.raises(
                CharLMError, match=r"run is in use by another training: .* another --checkpoint-dir"
            ) as seen:
                train(str(text), folder, **SMALL, **changes)
            refused.append(str(seen.value))

    expected = train(str(text), tmp_path / "alone", **SMALL)
    result = train(str(text), folder, reporter=Meanwhile(second), **SMALL)
    assert len(refused) == 2
    assert all("\n" not in line for line in refused)
    assert result.best.read_bytes() == expected.best.read_bytes()


def test_a_second_resume_is_refused(text, tmp_path):
    folder = tmp_path / "run"
    train(str(text), folder, **SMALL)

    def second(run):
        with pytest.raises(InUseError, match="run is in use by another training"):
            train(None, folder, resume=True, max_epochs=3)
        return True

    class FirstRow(Meanwhile):
        def row(self, run, row):
            self.result = self.result or self.action(run)

    reporter = FirstRow(second)
    train(None, folder, resume=True, max_epochs=2, reporter=reporter)
    assert reporter.result


def test_a_second_training_without_a_name_gets_another_folder(text):
    """Started while the first one trains: runs/babble-2, and both models are those of a run alone."""
    reporter = Meanwhile(lambda run: train(str(text), **SMALL))
    first = train(str(text), reporter=reporter, **SMALL)
    second = reporter.result
    assert [str(result.folder) for result in (first, second)] == ["runs/babble", "runs/babble-2"]
    assert first.best.read_bytes() == second.best.read_bytes()
    logs = [(result.folder / "log.jsonl").read_text().splitlines() for result in (first, second)]
    assert len(logs[0]) == len(logs[1])


PROGRAM = """
import sys
from fastlstm.charlm.training.folder import take, take_free
from pathlib import Path
taken = take_free(Path(sys.argv[1]))
print(taken.path, flush=True)
sys.stdin.read()
"""


def start(*argv):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, argv)], env=env, **pipes)


def test_processes_started_together_take_different_folders_and_death_frees_them(tmp_path):
    processes = [start(tmp_path / "runs/x") for _ in range(3)]
    names = [process.stdout.readline().strip() for process in processes]
    assert sorted(names) == [str(tmp_path / f"runs/x{end}") for end in ("", "-2", "-3")]
    with pytest.raises(InUseError):
        take(tmp_path / "runs/x-2")
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = take(tmp_path / "runs/x-2")
    again.release()


def test_a_folder_that_its_holder_removes_is_not_held_twice(tmp_path, monkeypatch):
    """Opened by a second process before its holder removes it: the lock on the removed file does not count."""
    first, opened = take(tmp_path / "run"), []
    real = folders._exclusive

    def late(handle):
        if not opened:
            opened.append(handle)
            first.release()
        real(handle)

    monkeypatch.setattr(folders, "_exclusive", late)
    second = take(tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / "run/.lock").exists()
    with pytest.raises(InUseError):
        take(tmp_path / "run")
    second.release()


def test_a_file_system_without_locks_is_noted(text, tmp_path, monkeypatch):
    def none(handle):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(folders, "_exclusive", none)
    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    train(str(text), tmp_path / "run", reporter=Notes(), **SMALL)
    assert notes == [f"the file system of {tmp_path / 'run'} has no locks: start no second training in that folder"]


def test_free_means_no_model_and_no_training(tmp_path):
    for name, file in (("x", "best.safetensors"), ("x-2", "last.safetensors")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "x-3").mkdir()  # of a run that ended before it saved
    taken = take_free(tmp_path / "x")
    assert taken.path == tmp_path / "x-3"
    taken.release()
    assert sorted(os.listdir(tmp_path / "x")) == ["best.safetensors"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe"])
def test_a_training_that_never_began_leaves_no_folder(tmp_path, content):
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    with pytest.raises(CharLMError):
        train(str(path), **SMALL)
    with pytest.raises(CharLMError):
        train(str(path), "deep/er/run", **SMALL)
    assert os.listdir(tmp_path) == ["input.txt"]
    Path("mine").mkdir()
    with pytest.raises(CharLMError):
        train(str(path), "mine", **SMALL)
    assert os.listdir("mine") == []


def test_overwriting_with_a_text_that_cannot_be_read_keeps_the_run(small_run, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    before = {path.name: path.read_bytes() for path in small_run.folder.iterdir()}
    with pytest.raises(CharLMError, match="is empty"):
        train(str(tmp_path / "empty.txt"), small_run.folder, overwrite=True, **SMALL)
    assert {path.name: path.read_bytes() for path in small_run.folder.iterdir()} == before


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(text, tmp_path, name):
    (tmp_path / "file").touch()
    for changes in ({}, {"overwrite": True}):
        with pytest.raises(CharLMError, match=r"cannot use the folder .*; choose another --checkpoint-dir") as seen:
            train(str(text), tmp_path / name, **SMALL, **changes)
        assert "\n" not in str(seen.value)
