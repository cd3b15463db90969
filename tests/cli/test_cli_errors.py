"""The command where something is wrong: one clear line, exit code 2, nothing lost; interrupts and cut-off output."""

from __future__ import annotations

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
from tests.cli.quick_run import OPTIONS

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
    "fewer than none": (
        ["score", "run", "input.txt", "--num", "-1"],
        "--num': Input should be greater than or equal to 0",
    ),
    "orders": (["evaluate", "run", "--orders", "-1"], "Input should be greater than or equal to 0 (given: '-1')"),
    "lines": (["timeline", "run", "--lines", "-1"], "Input should be greater than or equal to 0 (given: '-1')"),
    "score": (["score", "run", "nowhere"], "cannot read nowhere: No such file"),
    "timeline": (["timeline", "run"], "run has no samples"),
    "timeline of nothing": (["timeline", "void"], "there is no run void"),
    "device": (["train", "input.txt", "--device", "abacus"], "no device 'abacus'"),
    "device that trains nothing": (
        ["train", "input.txt", "--device", "mps"],
        "--device is 'mps', and models are trained on",
    ),
    "device xpu": (
        ["train", "input.txt", "--device", "xpu"],
        "--device is 'xpu', and models are trained on cpu and cuda",
    ),
    "device meta": (["train", "input.txt", "--device", "meta"], "expected auto, cpu, cuda or cuda:0"),
    "folder": (
        ["train", "input.txt", "--checkpoint-dir", "input.txt"],
        "cannot use the folder input.txt: Not a directory",
    ),
    "long folder": (["train", "input.txt", "--checkpoint-dir", "x" * 300], "File name too long; choose another"),
    "long corpus": (["train", "x" * 5000], "there is no file or folder"),
    "long model": (["sample", "x" * 5000], "there is no checkpoint"),
    "unknown": (["train", "input.txt", "--unknown", "skip"], "the model of --init-from never saw"),
    "two primes": (
        ["sample", "run", "--prime", "a", "--prime-file", "input.txt"],
        "--prime and --prime-file do not go",
    ),
    "option": (["train", "x", "--no-such-option"], "No such option: --no-such-option"),
    "command": (["dance"], "No such command 'dance'; see "),
    "number": (["train", "input.txt", "--hidden-size", "abc"], "(given: 'abc'); see "),
    "number after =": (["train", "input.txt", "--hidden-size=abc"], "(given: 'abc'); see "),
    "no value": (["sample", "run", "--top-k"], "Option '--top-k' requires an argument; see "),
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


def test_an_interrupted_run_is_saved_and_says_how_to_go_on(text):
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


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_run_that_is_hung_up_is_saved(text, number):
    process = start("train", str(text), "--checkpoint-dir", "run", *OPTIONS[:-4], "--max-epochs", "100000")
    while not (Path("run/log.jsonl").exists() and Path("run/log.jsonl").stat().st_size > 200):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted at iteration .* --resume --checkpoint-dir run\n", err)
    assert Path("run/last.safetensors").exists()


def test_training_whose_output_is_cut_off_is_saved(text):
    """`train … | head`: one line says how to go on."""
    words = " ".join(
        [sys.executable, "-m", "fastlstm", "train", str(text), *OPTIONS[:-4], "--max-epochs 100000 --print-every 1"]
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", f"{words} --checkpoint-dir run | head -n 6 > /dev/null"],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.search(r"the output failed \(.*\): stopped at iteration .* --resume --checkpoint-dir run\n$", done.stderr)
    assert "Traceback" not in done.stderr
    assert Path("run/last.safetensors").exists()


def test_output_that_is_cut_off_gives_no_traceback(model):
    process = start("sample", model, "--length", "100000", "--seed", "1")
    process.stdout.read(100)
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in process.stderr.read()
