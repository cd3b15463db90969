"""A cache folder and a backend for tests of `fastlstm doctor --verify`."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from fastlstm import backends, dispatch
from fastlstm.ops import reference
from fastlstm.verify import record
from tests.verify.fakes import FakeBackend


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for records, and none known."""
    monkeypatch.setenv("FASTLSTM_CACHE", str(tmp_path))
    yield
    record.forget()


@pytest.fixture
def fake_backend(monkeypatch):
    """A backend `cuda` with kernels `good` and `bad`; the test says what `bad` does with its outputs and types."""
    forced = [""]

    @contextmanager
    def force(kernel):
        forced.append(kernel)
        yield
        forced.pop()

    def forward(inputs):
        outputs = reference.forward(*inputs)
        return backend.alter_outputs(*outputs) if forced[-1] == "bad" else outputs

    backend = FakeBackend(
        kernel_names=("good", "bad"),
        kernels=lambda spec: ("good", "good"),
        force=force,
        forward=forward,
        alter_outputs=lambda h, *rest: (h, *rest),
    )
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: backend if name == "cuda" else load(name))
    monkeypatch.setattr(dispatch, "unsupported_reason", lambda name, spec: None)
    return backend
