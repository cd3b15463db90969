"""A cache folder and a backend for tests of `fastlstm doctor --verify`."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fastlstm import backends, dispatch
from fastlstm.ops import reference
from fastlstm.verify import record


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for records, and none known."""
    monkeypatch.setenv("FASTLSTM_CACHE", str(tmp_path))
    yield
    record.forget()


@pytest.fixture
def module(monkeypatch):
    """A backend `cuda` with kernels `good` and `bad`; the test says what `bad` does with its results and types."""
    forced = [""]

    @contextmanager
    def force(kernel):
        forced.append(kernel)
        yield
        forced.pop()

    def forward(*args):
        found = reference.forward(*args)
        return made.spoil(*found) if forced[-1] == "bad" else found

    made = SimpleNamespace(
        NAME="cuda",
        KERNELS=("good", "bad"),
        why_not=lambda spec: None,
        planned=lambda spec: ("good", "good"),
        force=force,
        forward=forward,
        backward=reference.backward,
        spoil=lambda h, *rest: (h, *rest),
    )
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: made if name == "cuda" else load(name))
    monkeypatch.setattr(dispatch, "why_not", lambda name, spec: None)
    return made
