"""`fastlstm doctor` says what runs here, and also when something is broken."""

from __future__ import annotations

import re

import pytest
import torch

from fastlstm import cli


@pytest.fixture
def doctor(capsys, monkeypatch):
    """Calls the command; gives what it prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def call() -> str:
        with pytest.raises(SystemExit) as end:
            cli.main(["doctor"])
        assert not end.value.code
        return capsys.readouterr().out

    return call


def test_doctor(doctor):
    out = doctor()
    for word in (
        "torch",
        "Python",
        "platform",
        "instructions",
        "threads",
        "OpenMP",
        "cpu",
        "cuda",
        "triton",
        "reference",
    ):
        assert word in out
    assert re.search(r"– +cuda +cannot run: ", out) or torch.cuda.is_available()
    assert "A call on the CPU runs on" in out


def test_doctor_survives_a_broken_backend(doctor, monkeypatch):
    def broken(name, spec):
        raise RuntimeError("no driver")

    monkeypatch.setattr("fastlstm.dispatch.why_not", broken)
    out = doctor()
    assert "it failed when asked (RuntimeError: no driver)" in out
    assert "A call on the CPU runs on torch" in out
