"""benchmarks/compiled.py: each contender compiles on its own, and all give the same loss and gradients."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from benchmarks import compiled


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"T": 3, "B": 2, "H": 8, "V": 5}.items():
        monkeypatch.setattr(compiled, name, value)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("workload", compiled.WORKLOADS)
def test_a_graph_that_breaks_at_nn_lstm_does_not_break_that_of_fastlstm(workload):
    graphs = {}
    for library in compiled.LIBRARIES:
        model, step = compiled.model_and_step(workload, library)
        counter = CompileCounter()
        step(torch.compile(model, backend=counter))
        graphs[library] = counter.frame_count
    assert graphs == {"nn.LSTM": 2 if workload == "characters" else 0, "fastlstm": 1}


@pytest.mark.slow
@pytest.mark.parametrize("workload", compiled.WORKLOADS)
def test_every_contender_is_timed(workload):
    timed = compiled.timed_steps(workload, rounds=2)  # which compares the results of all with nn.LSTM's first
    assert list(timed) == [f"{library}, {how}" for library in compiled.LIBRARIES for how in ("eager", "compiled")]
    assert all(value > 0 for values in timed.values() for value in values.values())
