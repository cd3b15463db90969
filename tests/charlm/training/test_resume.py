"""A run that is stopped, killed or fails, and resumed, ends as if it had run through."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastlstm.charlm import CharLMError, Interrupted, checkpoint, train
from fastlstm.charlm.training.progress import Reporter
from fastlstm.charlm.training.trainer import Trainer
from tests.charlm.babbling import SMALL, babble

OPTIONS = {**SMALL, "dropout": 0.3, "checkpoint_every": 17, "sample_every": 40, "sample_length": 50, "log_every": 7}
CHANGES = [
    {},
    {"optimizer": "adamw", "schedule": "cosine", "warmup": 30},
    {"dropout": 0.0, "locked_dropout": 0.3, "weight_drop": 0.2},
    {"lines": True, "patience": 50, "max_epochs": 3},
]


class CrashError(Exception):
    pass


def outcome(folder: Path) -> dict:
    """All that a run leaves, without what tells the time."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for row in log:
        row.pop("chars_per_s")
    last = checkpoint.read(folder / "last.safetensors", with_train=True)
    run = {name: value for name, value in last.run["progress"].items() if name not in ("seconds", "log_size")}
    return {
        "best": (folder / "best.safetensors").read_bytes(),
        "tensors": {name: value.numpy().tobytes() for name, value in load_file(folder / "last.safetensors").items()},
        "run": run,
        "metrics": last.metrics,
        "log": log,
        "samples": (folder / "samples.jsonl").read_bytes(),
    }


def crash_at(monkeypatch, iteration: int) -> None:
    real = Trainer.step

    def step(self):
        if self.progress.iteration == iteration:
            raise CrashError
        real(self)

    monkeypatch.setattr(Trainer, "step", step)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "babble.txt"
    path.write_text("\n".join(babble(40, seed).replace("\n", " ").strip() for seed in range(600)))
    return str(path)


@pytest.mark.parametrize("changes", CHANGES)
def test_a_run_resumed_after_crashes_ends_the_same(corpus, tmp_path, monkeypatch, changes):
    options = {**OPTIONS, **changes}
    expected = outcome(train(corpus, tmp_path / "whole", **options).folder)
    folder = tmp_path / "run"
    for number, iteration in enumerate((20, 34, 52, 120, 238)):
        with monkeypatch.context() as patch:
            crash_at(patch, iteration)
            with pytest.raises(CrashError):
                train(corpus, folder, resume=number > 0, **options)
        torch.manual_seed(number)  # whatever the generator holds, the run has its own
    train(None, folder, resume=True)
    assert outcome(folder) == expected


def test_resumed_run_with_more_epochs_goes_on(corpus, tmp_path):
    train(corpus, tmp_path / "whole", **{**OPTIONS, "max_epochs": 2})
    train(corpus, tmp_path / "run", **OPTIONS)
    train(None, tmp_path / "run", resume=True, max_epochs=2)
    one, two = outcome(tmp_path / "whole"), outcome(tmp_path / "run")
    assert one["tensors"] == two["tensors"]
    assert one["log"] == two["log"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_go_on(corpus, tmp_path, number):
    class Signals(Reporter):
        def row(self, trainer, row):
            if row["iteration"] == 70:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)  # a shell that starts jobs in the background has SIGINT ignored
    expected = outcome(train(corpus, tmp_path / "whole", **OPTIONS).folder)
    folder = tmp_path / "my run"
    how = r"interrupted at iteration 70, saved .* --resume --checkpoint-dir '.*my run'"
    with pytest.raises(Interrupted, match=how):
        train(corpus, folder, reporter=Signals(), **OPTIONS)
    assert signal.getsignal(number) is before
    train(None, folder, resume=True)
    assert outcome(folder) == expected


def test_a_closed_terminal_saves_however_many_signals_it_sends(corpus, tmp_path):
    """The shell and the system send SIGHUP each, and a service manager SIGTERM with it; writing fails from then on."""

    class Closed(Reporter):
        def row(self, trainer, row):
            if row["iteration"] == 70:
                for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
                    os.kill(os.getpid(), number)
                raise OSError(errno.EIO, "Input/output error")

    expected = outcome(train(corpus, tmp_path / "whole", **OPTIONS).folder)
    with pytest.raises(Interrupted, match="at iteration 70, saved in"):
        train(corpus, tmp_path / "run", reporter=Closed(), **OPTIONS)
    train(None, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == expected


def test_a_hangup_that_is_ignored_stays_ignored(corpus, tmp_path):
    """As under nohup."""

    class Hangup(Reporter):
        def row(self, trainer, row):
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(corpus, tmp_path / "run", reporter=Hangup(), **OPTIONS).reason == "all epochs done"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("event", ["row", "sampled"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(1)])
def test_output_that_fails_saves_the_run(corpus, tmp_path, event, error):
    """A full disk behind standard output, or a closed pipe (rich leaves by SystemExit): saved, said in one line."""

    class Failing(Reporter):
        pass

    def fail(self, trainer, what):
        if trainer.progress.iteration >= 70:
            raise error

    setattr(Failing, event, fail)
    expected = outcome(train(corpus, tmp_path / "whole", **OPTIONS).folder)
    why = "No space left on device" if isinstance(error, OSError) else "its reader has gone"
    with pytest.raises(
        Interrupted, match=rf"the output failed \({why}\): stopped at iteration \d+, saved in .* --resume"
    ):
        train(corpus, tmp_path / "run", reporter=Failing(), **OPTIONS)
    train(None, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == expected


def test_a_signal_before_the_first_iteration_saves_what_it_names(corpus, tmp_path):
    class Early(Reporter):
        def begin(self, trainer):
            os.kill(os.getpid(), signal.SIGINT)

    expected = outcome(train(corpus, tmp_path / "whole", **OPTIONS).folder)
    with pytest.raises(Interrupted, match="interrupted at iteration 0, saved in"):
        train(corpus, tmp_path / "run", reporter=Early(), **OPTIONS)
    train(None, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == expected


def test_a_run_is_resumed_from_another_folder(corpus, tmp_path, monkeypatch):
    """The text was named relative to where the run began. Moved with its run, or left where it was, it is found again."""
    expected = outcome(train(corpus, tmp_path / "whole", **OPTIONS).folder)
    for name in ("moved", "left"):
        place = tmp_path / name
        place.mkdir()
        monkeypatch.chdir(place)
        Path("data").mkdir()
        Path("data/babble.txt").write_bytes(Path(corpus).read_bytes())
        with monkeypatch.context() as patch:
            crash_at(patch, 100)
            with pytest.raises(CrashError):
                train("data/babble.txt", "runs/x", **OPTIONS)
        monkeypatch.chdir(tmp_path)
        if name == "moved":
            place = place.rename(tmp_path / "elsewhere")
            run = place / "runs/x"
        else:
            run = (place / "runs/x").rename(tmp_path / "x")
        result = train(None, run, resume=True)
        assert outcome(run)["log"] == expected["log"]
        assert outcome(run)["tensors"] == expected["tensors"]
        assert result.load().evaluate().nats_per_char == pytest.approx(result.nats, rel=1e-5)  # finds its text as well
        (place / "data/babble.txt").unlink()
        gone = (
            r"the text of this model is gone: there is no .*babble.txt.* put it back, or name it: train TEXT --resume"
        )
        with pytest.raises(CharLMError, match=gone):
            train(None, run, resume=True)


def test_of_two_texts_the_one_that_the_run_began_with_is_found(corpus, tmp_path, monkeypatch):
    """In the folder of the resume there is another text of that name."""
    train(Path(corpus).name, tmp_path / "run", **OPTIONS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("babble.txt").write_text(babble(9_000, 3))
    assert train(None, tmp_path / "run", resume=True, max_epochs=2).reason == "all epochs done"


def test_counters_of_another_version_do_not_hinder_a_resume(corpus, tmp_path):
    done = train(corpus, tmp_path / "run", **OPTIONS)
    saved = checkpoint.read(done.last, with_train=True)
    saved.run["progress"]["first_loss"] = 3.3
    del saved.run["progress"]["lowest_loss"]
    checkpoint.write(done.last, saved)
    assert train(None, tmp_path / "run", resume=True, max_epochs=2).iteration == 2 * done.iteration
    saved = checkpoint.read(done.last, with_train=True)
    saved.run["progress"]["iteration"] = "many"
    checkpoint.write(done.last, saved)
    with pytest.raises(CharLMError, match="has iteration 'many', expected a number"):
        train(None, tmp_path / "run", resume=True)


def test_a_second_interrupt_ends_at_once_and_loses_nothing(corpus, tmp_path):
    class Twice(Reporter):
        def row(self, trainer, row):
            if row["iteration"] == 70:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)

    expected = outcome(train(corpus, tmp_path / "whole", **OPTIONS).folder)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path / "run", reporter=Twice(), **OPTIONS)
    train(None, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == expected


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_run_resumed_after_a_full_disk_ends_the_same(corpus, tmp_path, monkeypatch, call):
    """The fifth save fails; the fourth is there, and from it the run ends as it would have."""
    expected = outcome(train(corpus, tmp_path / "whole", **OPTIONS).folder)
    real, calls = getattr(os, call), []

    def full(*args):
        calls.append(args)
        if len(calls) == 9:
            raise OSError(28, "No space left on device")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(CharLMError, match="No space left"):
            train(corpus, tmp_path / "run", **OPTIONS)
    train(None, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == expected


class DeathError(BaseException):
    """What nothing catches: the process is gone."""


class HalfWritten:
    """A file whose writer dies in the middle."""

    def __init__(self, *args):
        self.stream = open(*args)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.stream.close()

    def write(self, content):
        self.stream.write(content[: len(content) // 2])
        raise DeathError


def die_at(patch, moment: str, count: int) -> None:
    """Death at a moment of the save with this number (of best or last)."""
    seen = []
    replace, fsync = os.replace, os.fsync

    def due() -> bool:
        seen.append(None)
        return len(seen) == count

    def opened(*args):
        return HalfWritten(*args) if due() else open(*args)

    def renamed(source, target):
        hit = due()
        if hit and moment == "before rename":
            raise DeathError
        replace(source, target)
        if hit:
            raise DeathError

    def synced(handle):
        if due():
            raise DeathError
        fsync(handle)

    if moment == "in write":
        patch.setattr(checkpoint, "open", opened, raising=False)
    elif moment == "in fsync":
        patch.setattr(os, "fsync", synced)
    else:
        patch.setattr(os, "replace", renamed)


@pytest.mark.parametrize("moment", ["in write", "in fsync", "before rename", "after rename"])
def test_death_while_saving_leaves_a_whole_checkpoint(corpus, tmp_path, monkeypatch, moment):
    """Wherever it strikes, some whole checkpoint is there, and from it the run ends as it would have."""
    expected = outcome(train(corpus, tmp_path / "whole", **OPTIONS).folder)
    folder = tmp_path / "run"
    for count in (3, 1, 4, 2, 5):
        resume = (folder / "last.safetensors").exists()
        with monkeypatch.context() as patch:
            die_at(patch, moment, count)
            with pytest.raises(DeathError):
                train(corpus, folder, resume=resume, **OPTIONS)
        if (folder / "last.safetensors").exists():
            checkpoint.read(folder / "last.safetensors", with_train=True)
    train(None, folder, resume=True)
    assert outcome(folder) == expected


def test_resume_refuses_other_runs(corpus, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(CharLMError, match=r"no run to resume in .*it holds no last.safetensors"):
        train(corpus, folder, resume=True)
    done = train(corpus, folder, **OPTIONS)
    with pytest.raises(CharLMError, match="started with --hidden-size 12 and cannot be resumed with --hidden-size 64"):
        train(corpus, folder, resume=True, hidden_size=64)
    with pytest.raises(CharLMError, match="name a corpus to learn"):
        train(None, tmp_path / "new")
    other = tmp_path / "other.txt"
    other.write_text(babble(20_000, 9))
    with pytest.raises(CharLMError, match=r"other.txt is not the corpus this run began with .*babble.txt: 2.*sha256"):
        train(str(other), folder, resume=True)
    log = folder / "log.jsonl"
    log.write_bytes(log.read_bytes()[:100])
    with pytest.raises(CharLMError, match=r"log.jsonl is shorter than its checkpoint says"):
        train(corpus, folder, resume=True)
    done.last.write_bytes(done.best.read_bytes())
    with pytest.raises(CharLMError, match="holds a model but no run: use it with --init-from"):
        train(corpus, folder, resume=True)


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from fastlstm.charlm import train
corpus, folder, resume = sys.argv[1:]
print("go", flush=True)
train(corpus, folder, resume=resume == "yes", hidden_size=12, num_layers=2, batch_size=4, seq_length=20, max_epochs=25,
      dropout=0.3, checkpoint_every=25, sample_every=300, sample_length=50, log_every=7)
"""


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_the_same(corpus, tmp_path):
    """SIGKILL at twenty random moments, each seen to hit a live process; then the run is let through."""

    def start(folder, resume):
        command = [sys.executable, "-c", PROGRAM, corpus, str(folder), "yes" if resume else "no"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=env)

    begin = time.monotonic()
    whole = start(tmp_path / "whole", False)
    whole.stdout.readline()
    loaded = time.monotonic()
    assert whole.wait() == 0
    training = time.monotonic() - loaded
    rng = random.Random(1)
    folder, kills, states = tmp_path / "run", 0, set()
    while kills < 20:
        assert time.monotonic() - begin < 900
        process = start(folder, (folder / "last.safetensors").exists())
        process.stdout.readline()
        time.sleep(rng.random() * training / 4)
        process.kill()
        if process.wait() == 0:  # it ended before the signal reached it: begin anew, so that every kill counted has hit
            assert outcome(folder) == outcome(tmp_path / "whole")
            for path in folder.iterdir():
                path.unlink()
            continue
        assert process.returncode == -signal.SIGKILL
        kills += 1
        if (folder / "last.safetensors").exists():
            states.add(checkpoint.read(folder / "last.safetensors").metrics["iteration"])
    assert len(states) >= 5  # they hit at different points
    assert start(folder, (folder / "last.safetensors").exists()).wait() == 0
    assert outcome(folder) == outcome(tmp_path / "whole")
