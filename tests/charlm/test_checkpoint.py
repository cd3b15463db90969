"""One file, whole or not there."""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastlstm.charlm import checkpoint
from fastlstm.charlm.errors import CharLMError
from fastlstm.charlm.lm import CharLM


def rewrite(path, change):
    """The same file with its metadata changed."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stream:
        record = json.loads(stream.metadata()["charlm"])
    change(record)
    save_file(load_file(path), path, {"charlm": json.dumps(record)})


def test_a_checkpoint_holds_weights_corpus_and_metrics(small_run):
    best, last = small_run.best, small_run.last
    saved = checkpoint.read(best)
    assert set(saved.weights) == {
        *(
            f"rnn.lstm.{prefix}_l{layer}"
            for prefix in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for layer in (0, 1)
        ),
        "out.weight",
        "out.bias",
    }
    assert saved.corpus["sha256"]
    assert saved.config["hidden_size"] == 12
    assert saved.metrics["val_nats"] == pytest.approx(small_run.nats)
    assert not saved.train
    assert checkpoint.read(last, with_train=True).train["h"].shape == (2, 4, 12)
    assert b"pickle" not in best.read_bytes()
    assert not CharLM.load(best).model.training


def test_writing_twice_gives_the_same_bytes(small_run):
    saved = checkpoint.read(small_run.last, with_train=True)
    for name in ("a", "b"):
        checkpoint.write(small_run.folder / name, saved)
    assert (small_run.folder / "a").read_bytes() == (small_run.folder / "b").read_bytes()


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_fault_while_saving_leaves_the_old_file(small_run, monkeypatch, call):
    before = small_run.best.read_bytes()
    saved = checkpoint.read(small_run.best)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        real = open

        def opened(path, mode="r", *args, **kwargs):
            stream = real(path, mode, *args, **kwargs)
            if "x" in mode:
                stream.write(b"half a file")
                return _Full(stream)
            return stream

        monkeypatch.setattr("builtins.open", opened)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(CharLMError, match=r"cannot save .*best.safetensors .*No space left.*previous one is untouched"):
        checkpoint.write(small_run.best, saved)
    monkeypatch.undo()
    assert small_run.best.read_bytes() == before
    assert sorted(path.name for path in small_run.folder.iterdir() if path.name.startswith(".")) == []


class _Full:
    """A file on a full disk."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.stream.close()


def test_two_writers_of_one_file_leave_the_whole_file_of_the_later(tmp_path):
    path = tmp_path / ("page" * 60)  # 240 characters, near what a file system allows

    def slow():
        yield b"first "
        checkpoint.write_atomic(path, b"second")
        assert path.read_bytes() == b"second"
        yield b"whole"

    checkpoint.write_atomic(path, slow())
    assert path.read_bytes() == b"first whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    checkpoint.write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    checkpoint.write_atomic(pipe, [b"a ", b"page"])
    reader.join()
    assert read == [b"a page"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_device_stays_and_its_fault_is_told():
    with pytest.raises(CharLMError, match=r"cannot save /dev/full .*: No space left on device; make room or choose"):
        checkpoint.write_atomic(Path("/dev/full"), b"page")
    assert Path("/dev/full").is_char_device()


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path):
    def interrupted():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomic(tmp_path / "page.html", interrupted())
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_refused(small_run, tmp_path):
    content = small_run.best.read_bytes()
    cases = {
        "cut": (content[: len(content) // 2], "is no checkpoint, or it is damaged"),
        "empty": (b"", "is no checkpoint, or it is damaged"),
        "noise": (os.urandom(1000), "is no checkpoint, or it is damaged"),
        "pickled": (pickle.dumps({"a": 1}), "is no checkpoint, or it is damaged"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CharLMError, match=message):
            CharLM.load(tmp_path / name)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(CharLMError, match="not one that `fastlstm train` wrote"):
        CharLM.load(tmp_path / "foreign")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(version=99), "has checkpoint format 99; .* knows up to 1: upgrade"),
        (lambda record: record.pop("vocabulary"), "its metadata lacks 'vocabulary'"),
        (lambda record: record["config"].update(hidden_size=13), "do not fit its configuration"),
        (
            lambda record: record.update(version="x"),
            "best.safetensors is damaged: its 'charlm' metadata cannot be read",
        ),
        (lambda record: record.update(config=None), "is damaged: config in its metadata is None, expected an object"),
        (lambda record: record.update(version=-1), "is damaged: its 'charlm' metadata cannot be read"),
        (lambda record: record["corpus"].pop("sha256"), "is damaged: its metadata lacks 'sha256'"),
        (lambda record: record["vocabulary"].update(symbols=5), "symbols in its metadata is 5, expected str"),
        (lambda record: record["vocabulary"].update(symbols=""), "symbols in its metadata is '', expected str"),
        (lambda record: record["vocabulary"].update(symbols="aa"), "best.safetensors is damaged: .* a character twice"),
        (lambda record: record["config"].update(flux=1), "no training option 'flux'"),
        (
            lambda record: record["config"].update(hidden_size="x"),
            "best.safetensors is damaged: .*--hidden-size is 'x'",
        ),
    ],
)
def test_wrong_metadata_is_refused(small_run, change, message):
    rewrite(small_run.best, change)
    with pytest.raises(CharLMError, match=message):
        CharLM.load(small_run.best)


DEEP = 100_000


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[" * DEEP + "]" * DEEP, "its 'charlm' metadata cannot be read"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, "its 'charlm' metadata cannot be read"),
        ('{"version": 1, "config": ' + "[" * 900 + "]" * 900 + "}", "config in its metadata is .*, expected an object"),
        ('{"version": 1e999}', "its 'charlm' metadata cannot be read"),
    ],
    ids=["lists", "objects", "in a value", "infinite version"],
)
def test_deep_metadata_is_one_line(small_run, metadata, message):
    save_file(load_file(small_run.best), small_run.best, {"charlm": metadata})
    with pytest.raises(CharLMError, match=f"best.safetensors is damaged: {message}") as caught:
        CharLM.load(small_run.best)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda record: record["corpus"].update(symbols="many"),
            "corpus in its metadata has symbols 'many', expected a number",
        ),
        (lambda record: record["metrics"].update(iteration=10**400), "has iteration 1000.*, expected a number"),
        (lambda record: record["metrics"].update(best_nats=[1]), r"has best_nats \[1\], expected a number"),
        (lambda record: record["metrics"].pop("epoch"), "its metadata lacks 'epoch'"),
        (
            lambda record: record.update(run={"processes": 1, "progress": 3}),
            "run in its metadata is 3, expected an object",
        ),
        (lambda record: record["vocabulary"].update(bytes=True), "byte model is not the 256 bytes in order"),
        (lambda record: record["config"].update(encoding="x" * 10**6, hidden_size=[]), r"--hidden-size is \[\]"),
    ],
)
def test_wrong_values_are_refused_by_every_reader(small_run, change, message):
    rewrite(small_run.best, change)
    for reader in (checkpoint.read, CharLM.load):
        with pytest.raises(CharLMError, match=f"best.safetensors is damaged: .*{message}"):
            reader(small_run.best)


def test_sizes_that_the_weights_do_not_have_take_no_memory(small_run):
    """A model of the sizes in the metadata would have 69 GB."""
    rewrite(small_run.best, lambda record: record["config"].update(hidden_size=1 << 16))
    with pytest.raises(
        CharLMError,
        match=r"do not fit its configuration \('rnn.lstm.weight_ih_l0' is \[48, 27\], expected \[262144, 27\]",
    ):
        CharLM.load(small_run.best)


def test_integer_weights_are_refused(small_run, tmp_path):
    with safe_open(small_run.best, "pt") as stream:
        tensors = {name: stream.get_tensor(name).int() for name in stream.keys()}  # noqa: SIM118
        save_file(tensors, tmp_path / "integers.safetensors", stream.metadata())
    with pytest.raises(CharLMError, match=r"integers.safetensors is damaged: the weights .* are torch.int32"):
        CharLM.load(tmp_path / "integers.safetensors")


def test_locate_finds_the_best_checkpoint_of_a_run(small_run, tmp_path):
    assert checkpoint.locate(str(small_run.folder)) == small_run.best
    with pytest.raises(CharLMError, match=r"there is no checkpoint nowhere: expected a .safetensors file"):
        checkpoint.locate("nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(CharLMError, match=r"holds neither best.safetensors nor last.safetensors"):
        checkpoint.locate(str(tmp_path / "void"))


def test_a_run_or_file_wins_over_the_shipped_model_of_its_name(small_run, tmp_path):
    """A run's folder or a file of that name wins; a folder that holds no run does not."""
    shipped = checkpoint.locate("names")
    assert shipped.parent.name == "models"
    (tmp_path / "names").mkdir(exist_ok=True)
    assert checkpoint.locate("names") == shipped
    (tmp_path / "names/best.safetensors").write_bytes(small_run.best.read_bytes())
    assert checkpoint.locate("names") == Path("names/best.safetensors")
