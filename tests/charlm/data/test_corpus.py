"""Reading text: encodings, bytes, lines, folders, built-in corpora, hashes, large files."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from fastlstm.charlm.data import corpus as corpus_module
from fastlstm.charlm.data.corpus import CorpusOptions, load
from fastlstm.charlm.data.vocab import Vocabulary
from fastlstm.charlm.errors import CharLMError


def test_text_round_trips_and_has_the_hash_of_its_bytes(tmp_path):
    content = "Grüße, 世界 🙂\nagain\n"
    path = tmp_path / "a.txt"
    path.write_text(content, encoding="utf-8")
    corpus = load(str(path), CorpusOptions())
    assert corpus.text() == content
    assert corpus.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert corpus.vocab.symbols == "".join(sorted(set(content)))
    assert corpus.ids.dtype == np.uint8
    assert corpus.size == len(content.encode())


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "latin-1", "shift_jis"])
def test_other_encodings_are_decoded(tmp_path, encoding):
    content = "café\n" if encoding == "latin-1" else "漢字かな\n"
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode(encoding))
    assert load(str(path), CorpusOptions(encoding=encoding)).text() == content


def test_thousands_of_characters_take_two_bytes(tmp_path):
    content = "".join(chr(0x4E00 + i) for i in range(3000)) * 2
    (tmp_path / "zh.txt").write_text(content)
    corpus = load("zh.txt", CorpusOptions())
    assert len(corpus.vocab) == 3000
    assert corpus.ids.dtype == np.uint16
    assert corpus.text() == content


def test_line_ends_become_newlines_and_the_byte_order_mark_goes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert load("a.txt", CorpusOptions()).text() == "one\ntwo\nthree\n"
    assert load("a.txt", CorpusOptions(bytes=True)).text() == "\xef\xbb\xbfone\r\ntwo\rthree\n"


def test_chunk_borders_change_nothing(tmp_path, monkeypatch):
    content = "aé世🙂\r\nb\n" * 50
    (tmp_path / "a.txt").write_bytes(content.encode())
    whole = load("a.txt", CorpusOptions()).text()
    lines = load("a.txt", CorpusOptions(lines=True)).text()
    monkeypatch.setattr("fastlstm.charlm.data.text_source.CHUNK", 3)
    assert load("a.txt", CorpusOptions()).text() == whole == content.replace("\r\n", "\n")
    assert load("a.txt", CorpusOptions(lines=True)).text() == lines == "aé世🙂\nb\n" * 50


def test_lines_are_stripped_and_unique_on_demand(tmp_path):
    (tmp_path / "a.txt").write_text("  Ann \n\nBob\nAnn\nCid")
    every = load("a.txt", CorpusOptions(lines=True))
    assert [every.item(k) for k in range(len(every.starts) - 1)] == ["Ann", "Bob", "Ann", "Cid"]
    unique = load("a.txt", CorpusOptions(lines=True, unique=True))
    assert [unique.item(k) for k in range(len(unique.starts) - 1)] == ["Ann", "Bob", "Cid"]


def test_a_large_text_is_mapped(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abc\n" * 1000)
    monkeypatch.setattr(corpus_module, "MAPPED", 1000)
    corpus = load("a.txt", CorpusOptions(), folder=tmp_path)
    assert isinstance(corpus.ids, np.memmap)
    assert corpus.text() == "abc\n" * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]  # the store has no name


def test_no_room_for_a_large_text_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abc\n" * 1000)
    monkeypatch.setattr(corpus_module, "MAPPED", 1000)
    with pytest.raises(CharLMError, match=r"cannot keep the encoded corpus in .*void: No such file"):
        load("a.txt", CorpusOptions(), folder=tmp_path / "void")

    def full(*args, **kwargs):
        return open("/dev/full", "wb", buffering=0)

    if os.path.exists("/dev/full"):
        monkeypatch.setattr("tempfile.TemporaryFile", full)
        with pytest.raises(CharLMError, match=r"cannot keep the encoded corpus in .*: No space left"):
            load("a.txt", CorpusOptions(), folder=tmp_path)


def test_a_folder_is_its_text_files_in_order(tmp_path):
    for name, content in {"b.txt": "two", "a.txt": "one", "sub/c.txt": "three", ".hidden": "no"}.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(content)
    (tmp_path / "d" / "picture").write_bytes(b"\x89PNG\0\0")
    assert load("d", CorpusOptions()).text() == "onetwothree"


def test_files_that_changed_are_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcabc")
    corpus = load("a.txt", CorpusOptions())
    assert corpus.changed() == []
    path.write_text("abcabcd")
    assert [str(file) for file in corpus.changed()] == ["a.txt"]
    path.unlink()
    assert [str(file) for file in corpus.changed()] == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "reading", "message"),
    [
        (None, CorpusOptions(), "no file or folder 'a.txt'.*names, python, shakespeare"),
        (b"", CorpusOptions(), "a.txt is empty"),
        (b" \n\n", CorpusOptions(lines=True), "a.txt is empty"),
        (b"ok \xe9t\xe9", CorpusOptions(), r"a.txt is not utf-8: byte 0xe9 at offset 3; .*--encoding.*--bytes"),
        (b"x", CorpusOptions(encoding="klingon"), "no encoding 'klingon'"),
    ],
)
def test_bad_files_are_refused_with_the_cause(tmp_path, content, reading, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(CharLMError, match=message):
        load("a.txt", reading)


def test_the_offset_of_a_bad_byte_counts_the_whole_file(tmp_path):
    at = (3 << 20) + 7
    (tmp_path / "a.txt").write_bytes(b"a" * at + b"\xff" + b"a" * 10)
    with pytest.raises(CharLMError, match=f"offset {at:,};"):
        load("a.txt", CorpusOptions())


def test_a_given_vocabulary_must_know_every_character(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    assert load("a.txt", CorpusOptions(), Vocabulary("cbax")).ids.tolist() == [2, 1, 0]
    with pytest.raises(CharLMError, match=r"a.txt has 2 characters that the model never saw: 'a' 'c'"):
        load("a.txt", CorpusOptions(), Vocabulary("b"))


def test_preprocessing_runs_no_python_for_each_character(tmp_path):
    """A text four times as long takes as many lines of Python: chunks of it are read, counted and encoded whole."""
    content = ("The quick brown fox jumps over the lazy dog. Grüße!\n" * 4000).encode()
    counts = []
    for times in (1, 4):
        (tmp_path / "a.txt").write_bytes(content * times)
        steps = itertools.count()  # calls, lines, turns of a loop, returns

        def step(frame, event, arg, steps=steps):
            next(steps)
            return step

        before = sys.gettrace()
        sys.settrace(step)
        try:
            corpus = load("a.txt", CorpusOptions())
        finally:
            sys.settrace(before)
        assert len(corpus) == 208_000 * times
        counts.append(next(steps))
    assert counts[1] - counts[0] < 100


LARGE = """
import json, resource, sys
import torch
import fastlstm
from fastlstm.charlm import train
from fastlstm.charlm.data import corpus

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of a process, on Linux in KiB

fastlstm.TokenLSTM(4, None, 8)(torch.zeros(3, 2, dtype=torch.int64))[0].sum().backward()
before = peak()
name, lines = sys.argv[1], sys.argv[2] == "lines"
read = corpus.load(name, corpus.CorpusOptions(lines=lines, unique=lines))
assert hasattr(read.ids, "filename"), "not mapped"
del read
result = train(name, "run-" + sys.argv[2], lines=lines, hidden_size=64, max_time=5.0, val_frac=0.002)
print(json.dumps({"megabytes": (peak() - before) / 1e6, "nats": result.nats}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("text_form", ["running", "lines"])
def test_100_megabytes_train_in_bounded_memory(tmp_path, text_form):
    """Less than 1 GB above what torch and the module took before the corpus came."""
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlué世", k=rng.randint(1, 9))) for _ in range(5000)]
    path, written = tmp_path / "large.txt", 0
    with open(path, "wb") as stream:
        while written < 100_000_000:
            block = "".join(" ".join(rng.choices(words, k=9)) + f" {rng.random()}\n" for _ in range(1000))
            written += stream.write(block.encode())
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    done = subprocess.run([sys.executable, "-c", LARGE, path, text_form], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(text_form, report)
    assert report["megabytes"] < 1000
    assert report["nats"] < 3.5
