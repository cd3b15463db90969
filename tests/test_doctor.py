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


def test_doctor_names_what_is_here_and_what_would_run(doctor):
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

    monkeypatch.setattr("fastlstm.dispatch.unsupported_reason", broken)
    out = doctor()
    assert "it failed when asked (RuntimeError: no driver)" in out
    assert "A call on the CPU runs on torch" in out


def test_full_without_verify_is_an_error(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--full"])
    assert end.value.code == 2
    assert "--full goes with --verify" in capsys.readouterr().err


@pytest.mark.parametrize("full", [False, True])
def test_verify_and_full_reach_the_verification(monkeypatch, full):
    asked = []
    monkeypatch.setattr("fastlstm.verify.run.verify", lambda say, full: asked.append(full) or 1)
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--verify", *["--full"] * full])
    assert end.value.code == 1
    assert asked == [full]


def test_the_hint_says_how_long_a_verification_takes(caplog):
    """As long as the limit is, in minutes."""
    from fastlstm import dispatch
    from fastlstm.verify.plans import LIMIT

    dispatch._hint.cache_clear()
    dispatch._hint()
    assert "fastlstm doctor --verify` (at most three minutes)" in caplog.text
    assert 120 < LIMIT <= 180
