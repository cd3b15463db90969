"""Small corpora and models that the tests of the character-model tool share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastlstm.charlm import TrainResult, config, train
from tests.charlm.babbling import SMALL, babble


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, without the data folder of the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTLSTM_DATA", raising=False)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Models this small gain nothing from a second thread and lose much when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path) -> Path:
    """A text file of 20,000 characters."""
    path = tmp_path / "babble.txt"
    path.write_text(babble(20_000))
    return path


@pytest.fixture
def small_run(text, tmp_path) -> TrainResult:
    """A finished run of a tiny model."""
    return train(str(text), tmp_path / "run", **SMALL)


@pytest.fixture
def small_config() -> config.TrainConfig:
    return config.make(**SMALL).settle(False)


@pytest.fixture
def lm(small_run):
    return small_run.load()


@pytest.fixture
def lines_run(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(babble(30, seed).replace("\n", "").strip() for seed in range(700)))
    return train(str(path), tmp_path / "lines_run", lines=True, **SMALL)
