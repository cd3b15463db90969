"""A cache folder and a backend for tests of `fastlstm doctor --verify`."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from fastlstm import backends, dispatch
from fastlstm.ops import reference
from fastlstm.verify import record
from tests.verify.verifying import Fake


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

    def forward(inputs):
        found = reference.forward(*inputs)
        return made.spoil(*found) if forced[-1] == "bad" else found

    made = Fake(
        kernel_names=("good", "bad"),
        kernels=lambda spec: ("good", "good"),
        force=force,
        forward=forward,
        spoil=lambda h, *rest: (h, *rest),
    )
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: made if name == "cuda" else load(name))
    monkeypatch.setattr(dispatch, "unsupported_reason", lambda name, spec: None)
    return made
