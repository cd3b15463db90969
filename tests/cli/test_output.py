"""Standard output and input that lack something: one line and an exit code, or replacement characters; never a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.quick_run import OPTIONS

FULL = Path("/dev/full")


@pytest.fixture
def accents(run):
    """A model of a text outside ASCII and cp1252, in a file that begins with a byte order mark."""
    Path("text.txt").write_text("żółć é 世界\n" * 400, encoding="utf-8-sig")
    code, _, err = run("train", "text.txt", "--checkpoint-dir", "accents", *OPTIONS)
    assert (code, err) == (0, "")
    return "accents"


COMMANDS = {
    "sample": ["--prime", "ż世", "--length", "50"],
    "sample --num": ["--num", "2", "--length", "50"],
    "sample --unique": ["--unique", "--length", "50"],
    "score": ["text.txt"],
    "evaluate": ["text.txt"],
    "inspect": [],
    "cells": ["text.txt", "--length", "900"],
    "visualize": ["text.txt", "--length", "100"],
}


def call(command, model):
    return [command.split()[0], model, *COMMANDS[command]]


@pytest.mark.parametrize(
    ("command", "encoding"), [*((name, "ascii") for name in COMMANDS), ("sample", "cp1252"), ("score", "cp1252")]
)
def test_a_narrow_encoding_gets_replacement_characters(run, accents, monkeypatch, command, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    code, _, err = run(*call(command, accents))
    assert code == 0
    assert "error" not in err
    content = stream.buffer.getvalue().decode(encoding)
    assert content
    if command.startswith("sample"):
        assert "?" in content
    assert sys.stdout is stream


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_under_standard_output_is_one_line(run, accents, monkeypatch, command):
    with open(FULL, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        code, _, err = run(*call(command, accents))
    assert code == 2
    assert err.splitlines()[-1] == "error: cannot write to standard output: No space left on device"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_standard_output_is_one_line(run, accents, monkeypatch, command):
    monkeypatch.setattr(sys, "stdout", None)
    code, _, err = run(*call(command, accents))
    assert code == 2
    assert err.splitlines()[-1].startswith("error: standard output is closed: nothing can be shown")
    assert sys.stdout is None


@pytest.mark.skipif(os.name == "nt", reason="the shell's >&-")
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "2>&- >/dev/full"])
def test_the_whole_process_ends_in_one_line(redirection):
    if "full" in redirection and not FULL.exists():
        pytest.skip("there is no /dev/full")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"}
    line = f"{sys.executable} -m fastlstm sample names --num 3 --seed 1 {redirection}"
    done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") == ("2>&-" not in redirection)
    assert done.stderr.count("\n") == (0 if "2>&-" in redirection else 1)


def test_a_byte_order_mark_that_training_dropped_is_dropped_later(run, accents):
    for words in (["score", accents, "text.txt"], ["evaluate", accents, "text.txt"]):
        assert run(*words)[0] == 0
    code, out, _ = run("sample", accents, "--prime-file", "text.txt", "--length", 5)
    assert code == 0
    assert out.startswith("żółć é")


@pytest.mark.parametrize(("encoding", "mark"), [("latin-1", b""), ("utf-16", b""), ("utf-8", b"\xef\xbb\xbf")])
def test_standard_input_is_read_in_the_model_s_encoding(run, monkeypatch, encoding, mark):
    content = mark + ("Müll über\n" * 300).encode(encoding)
    Path("text.txt").write_bytes(content)
    code, _, err = run("train", "text.txt", "--encoding", encoding, "--checkpoint-dir", "cv", *OPTIONS)
    assert (code, err) == (0, "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))
    code, out, err = run("score", "cv", "-", "--num", 1)
    assert (code, err) == (0, "")
    assert "Müll über⏎" in out
    assert (0, out, "") == run("score", "cv", "text.txt", "--num", 1)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\xff"), "ascii"))
    if encoding == "utf-8":
        assert run("score", "cv", "-")[2] == (
            "error: standard input is not utf-8, as the model's text is: byte 0; convert it\n"
        )
    monkeypatch.setattr(sys, "stdin", None)
    assert "error: standard input is closed" in run("score", "cv", "-")[2]


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "vulkan", "cuda:99"])
def test_a_device_that_is_not_here_is_one_line(run, text, device):
    if device.split(":")[0] in ("mps", "xpu") and torch.accelerator.is_available():
        pytest.skip("there may be one here")
    code, _, err = run("train", text, "--device", device, "--checkpoint-dir", "cv", *OPTIONS)
    assert code == 2
    assert "device" in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not Path("cv").exists()


@pytest.mark.parametrize("output", [".", "..", "folder", "folder/", "/"])
def test_a_folder_in_place_of_a_file_is_one_line(run, model, text, output):
    Path("folder").mkdir()
    for words in (["visualize", model, text, "--length", "300"], ["cells", model, text, "--length", "900"]):
        code, _, err = run(*words, "-o", output)
        assert code == 2
        assert "it is a folder, expected a file; choose another --output" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["sample", 300 * "x"], ["train", 300 * "x"], ["score", "names", 300 * "x"]])
def test_a_name_that_the_system_refuses_is_one_line(run, words):
    code, _, err = run(*words)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
