"""The cuda backend without a GPU: a library without a driver, and calls whose launches the host simulation takes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastlstm.backends import blocklist, cost_model, device, native
from fastlstm.backends.cuda import backend as cuda
from fastlstm.backends.cuda import status as cuda_status
from fastlstm.doctor import small_call
from fastlstm.verify import record
from tests.hostsim import backend as hostsim

_CACHES = (cuda._no_driver, cuda._no_code, cuda._gpu, cuda._cached_choice, cuda._cached_together, cuda_status.word)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No test knows what another found out about a device, nor what the user has recorded."""
    monkeypatch.setenv("FASTLSTM_CACHE", str(tmp_path / "records"))
    monkeypatch.setattr(cuda_status, "_launched_on", set())
    monkeypatch.setattr(cuda_status, "_words", {})
    monkeypatch.setattr(blocklist, "_blocked_in_process", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for forget in (record.forget, *(cached.cache_clear for cached in _CACHES)):
        forget()
    yield
    for forget in (record.forget, *(cached.cache_clear for cached in _CACHES)):
        forget()


class Lib:
    """What fastlstm._C.cuda answers, without a driver."""

    archs, timeout_ms, most_layers = "75,80,90", 1500, 12

    def __init__(self, capability: int = 90, missing: str = ""):
        self.capability, self.reason, self.devices = capability, missing, []

    def missing(self) -> str:
        return self.reason

    def properties(self, index: int) -> tuple[int, int, int]:
        return self.capability, 132, 227 << 10

    def set_device(self, index: int) -> None:
        self.devices.append(index)


def with_cuda(launchers, planner) -> SimpleNamespace:
    """fastlstm._C as it would be with these parts."""
    module = native.load()
    return SimpleNamespace(**{**vars(module), "cuda": launchers, "plan": planner})


@pytest.fixture
def lib(fresh, monkeypatch):
    """Make fastlstm._C look as if built with CUDA; the test sets the library's fields."""
    library = Lib()
    module = with_cuda(library, native.load().plan)
    monkeypatch.setattr(native, "load", lambda: module)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB HBM3")
    return library


@pytest.fixture
def simulated(fresh, monkeypatch):
    """The cuda backend on CPU tensors: its launches go to the host simulation, its guards are recorded."""
    reason = hostsim.BACKEND.unsupported_reason(small_call(torch.device("cpu")))
    if reason is not None:
        pytest.skip(reason)
    library, events = hostsim.library(), []
    gpu = replace(cost_model.KNOWN["H100"], sms=5, shared_kib=99)
    monkeypatch.setattr(cuda, "_index", lambda where: 3)
    monkeypatch.setattr(cuda, "_gpu", lambda index: gpu)
    monkeypatch.setattr(cuda, "not_built", lambda: None)
    monkeypatch.setattr(cuda, "_wrong_device", lambda device: None)
    monkeypatch.setattr(device, "allows_tf32", lambda: False)
    module = with_cuda(library.cuda, library.plan)
    monkeypatch.setattr(native, "load", lambda: module)

    @contextmanager
    def on(where):
        events.append(("device", where.index if isinstance(where, torch.device) else where))
        with hostsim.Simulated(library) as sim:
            monkeypatch.setattr(cuda._Gpu, "use", lambda self, *args: sim.use(*args))
            monkeypatch.setattr(cuda._Gpu, "product", lambda self, *args: sim.product(*args))
            yield

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(cuda, "current_cuda_stream", lambda index: 0)
    monkeypatch.setattr(library.cuda, "set_device", lambda index: events.append(("runtime", index)), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: events.append(("waited", index)))
    return events
