"""More than one process: two ranks are one process on the same global batch, and what happens when one is wrong or dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from fastlstm.charlm import CharLMError, checkpoint, config, train
from fastlstm.charlm.data.corpus import CorpusOptions, load
from fastlstm.charlm.training.distributed import Ranks
from fastlstm.charlm.training.progress import Reporter
from fastlstm.charlm.training.trainer import Trainer
from tests.charlm.babbling import babble

OPTIONS = {"hidden_size": 12, "batch_size": 4, "seq_length": 20, "log_every": 5, "seed": 7}


def flags(**options):
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture
def ranks(tmp_path):
    """Starts the processes of a run as torchrun does, and ends those that are left."""
    started = []

    def start(*argvs, program=("-m", "fastlstm", "train"), **env):
        port = free_port()
        for rank, argv in enumerate(argvs):
            variables = {
                **os.environ,
                **env,
                "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": str(len(argvs)),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
            command = [sys.executable, *program, *map(str, argv)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=variables, cwd=tmp_path, **pipes))
        return started[-len(argvs) :]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(processes):
    """(exit code, output, errors) of each."""
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def wait_for(happened, processes):
    """Wait for what the processes do before they end."""
    alive = True
    while not happened():
        assert alive, ended(processes)
        alive = all(process.poll() is None for process in processes)  # asked before `happened` is asked again
        time.sleep(0.005)


def test_two_ranks_train_as_one_process_does(text, tmp_path, ranks):
    """Fifty steps and then some: weights, optimiser, states and losses within rounding."""
    options = {**OPTIONS, "eval_every": 25, "checkpoint_every": 25, "max_epochs": 1}
    small = tmp_path / "small.txt"
    small.write_text(text.read_text()[:4500])  # 53 training batches
    one = train(str(small), tmp_path / "one", **options)
    assert one.iteration == 53
    argv = [small, "--checkpoint-dir", "two", *flags(**options)]
    first, second = ended(ranks(argv, argv))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "2 processes, each cpu" in first[1]
    assert second[1] == ""
    a, b = load_file(one.last), load_file(tmp_path / "two/last.safetensors")
    for name in a:
        if not name.startswith("train/generator") and name != "train/loss_sum":
            torch.testing.assert_close(b[name], a[name], rtol=1e-5, atol=1e-6, msg=name)
    logs = [
        [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        for folder in ("one", "two")
    ]
    assert [row["iteration"] for row in logs[0]] == [row["iteration"] for row in logs[1]]
    for expected, actual in zip(*logs, strict=True):
        for name in {"train_nats", "val_nats"} & set(expected):
            assert actual[name] == pytest.approx(expected[name], rel=1e-5)


THREADS = """
import pathlib, sys
from fastlstm.charlm import CharLMError, train

options = dict(hidden_size=12, batch_size=4, seq_length=20, max_epochs=1)
try:
    train(sys.argv[1], sys.argv[2], **options)
except CharLMError as error:
    print(error)
print([name.read_text().strip() for name in pathlib.Path("/proc/self/task").glob("*/comm")])
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are listed by Linux only")
@pytest.mark.parametrize("wrong", [False, True])
def test_no_thread_of_the_group_is_left(text, tmp_path, ranks, wrong):
    """One that is still there when Python ends may end the process with SIGABRT."""
    small, other = tmp_path / "small.txt", tmp_path / "other.txt"
    small.write_text(text.read_text()[:2000])
    other.write_text(text.read_text()[:1900])
    argvs = [[small, "run"], [other if wrong else small, "run"]]
    for code, out, err in ended(ranks(*argvs, program=["-c", THREADS])):
        assert code == 0, err
        assert ("another corpus" in out) == wrong
        assert "gloo" not in out.splitlines()[-1]


def test_ranks_resume_exactly(text, tmp_path, ranks):
    common = flags(**OPTIONS, dropout=0.3, checkpoint_every=40)
    whole, run = ([text, "--checkpoint-dir", name, *common] for name in ("whole", "run"))
    end = ["--max-epochs", 1]
    assert [code for code, *_ in ended(ranks([*whole, *end], [*whole, *end]))] == [0, 0]
    saved = tmp_path / "run/last.safetensors"
    for _ in range(5):  # a run that ends before the signals reach it begins anew
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        processes = ranks([*run, *end], [*run, *end])
        wait_for(saved.exists, processes)
        for process in processes:
            process.kill()
        ended(processes)
        if checkpoint.read(saved).metrics["epoch"] < 1:
            break
    assert checkpoint.read(saved).metrics["epoch"] < 1
    again = ["--resume", "--checkpoint-dir", "run"]
    for code, _, err in ended(ranks(again, again)):
        assert code == 0, err
    a, b = load_file(tmp_path / "whole/last.safetensors"), load_file(saved)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_rank_with_other_data_or_options_is_refused(text, tmp_path, ranks):
    other = tmp_path / "other.txt"
    other.write_text(babble(20_000, 5))
    argvs = [[path, "--checkpoint-dir", "run", *flags(**OPTIONS)] for path in (text, other)]
    for rank, (code, _, err) in enumerate(ended(ranks(*argvs))):
        assert code == 2
        assert f"error (rank {rank}): rank 1 has another corpus than rank 0" in err
    argvs = [[text, "--checkpoint-dir", "run", *flags(**OPTIONS | {"seed": seed})] for seed in (7, 8)]
    for code, _, err in ended(ranks(*argvs)):
        assert code == 2
        assert "rank 1 has another configuration than rank 0" in err


def test_a_rank_that_dies_ends_the_run(text, tmp_path, ranks):
    argv = [text, "--checkpoint-dir", "run", *flags(**OPTIONS, max_epochs=100_000, checkpoint_every=20)]
    first, second = ranks(argv, argv)
    saved = tmp_path / "run/last.safetensors"
    wait_for(saved.exists, [first])
    assert second.poll() is None
    second.kill()
    ((code, _, err), (killed, *_)) = ended([first, second])
    assert killed == -signal.SIGKILL
    assert code == 2
    assert "another process of this run ended or cannot be reached" in err
    assert "--resume" in err
    assert "Traceback" not in err
    assert saved.exists()


def test_a_batch_that_cannot_be_split_is_refused(text, tmp_path):
    ranks = Ranks("cpu")
    ranks.size = 2
    settings = config.make(**OPTIONS | {"batch_size": 5}).settle(False)
    with pytest.raises(CharLMError, match="--batch-size 5 cannot be split evenly over 2 processes"):
        Trainer(settings, load(str(text), CorpusOptions()), tmp_path, ranks, Reporter())


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(text, tmp_path):
    """As a user starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastlstm"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    argv = ["train", str(text), "--checkpoint-dir", "run", *flags(**OPTIONS, max_epochs=1)]
    done = subprocess.run([*command, *argv], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation loss") == 1
