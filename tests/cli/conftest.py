"""The command in this process: called with words, beside a small text and a small model."""

from __future__ import annotations

import pytest
import torch

from fastlstm import cli
from tests.cli.quick_run import OPTIONS


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
