"""The stages of `benchmarks.gpu_day`, one by one: what they time, and how they find what is wrong."""

from __future__ import annotations

import cProfile
import inspect
import json
import pstats
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu_day import (
    characters,
    child,
    graph,
    host,
    layers,
    measure,
    module,
    place,
    right,
    sanitizer,
    sweep,
    train,
    ubench,
)
from benchmarks.gpu_day import cudnn as cudnn_stage
from fastlstm.backends.cuda import backend as cuda
from fastlstm.backends.cuda import launch as cuda_launch
from tests.benchmarks.gpu_days import MADE_UP, rehearsal
from tests.hostsim import build


def test_what_is_timed_is_every_shape_that_is_promised():
    dense = {(c.math, c.H, c.B) for c in cudnn_stage.cells() if c.layout == "dense" and c.L == 1}
    for math in ("f16", "bf16", "tf32", "f32"):
        for H in (128, 256, 512, 768, 1024, 1536):
            assert {(math, H, B) for B in (1, 16, 64, 128)} <= dense
    assert {c.layout for c in cudnn_stage.cells()} == {"dense", "packed", "projected", "bidirectional"}
    assert len(set(cudnn_stage.cells())) == len(cudnn_stage.cells())
    assert len(set(module.cells())) == len(module.cells())


def test_what_is_compared_with_a_replay_keeps_no_autograd_graph():
    w = torch.ones(3, requires_grad=True)
    assert not any(tensor.requires_grad for tensor in graph.copies([w * 2, torch.ones(2)]))


def test_functions_of_a_profile_are_rows():
    profile = cProfile.Profile()
    profile.runcall(host._often, lambda: sorted([2, 1]), 4)
    found = {row["name"].split()[-1]: row for row in host.functions(pstats.Stats(profile), 4)}
    assert found["_often"]["ncalls"] == 0.25
    assert next(row for name, row in found.items() if "sorted" in name or "built-in" in row["name"])["ncalls"] == 1


def test_what_a_call_runs_is_counted_by_name():
    cpu = SimpleNamespace(rehearsal=True, sync=lambda: None)
    (row,) = host._counted(cpu, lambda: torch.ones(2) + torch.ones(2))
    assert (row["names"]["aten::add"], row["names"]["aten::ones"]) == (1, 2)
    assert row["launches"] == sum(row["names"].values())


def test_no_time_of_a_kernel_alone_where_there_is_none():
    assert train._alone(rehearsal(), lambda: None, "per_step", 4) is None


def test_nan_is_far_from_everything():
    one, nan = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert layers.far([one, one], [one, one]) == 0
    for got in ([nan, one], [one, nan]):
        assert layers.far(got, [one, one]) == float("inf")
    assert layers.far([one, one], [one, nan]) == float("inf")


def test_nn_lstm_under_autocast_is_judged_as_float16():
    cells = [
        layers.GridPoint("dense", math, 1, 512, 16, 0) for math in ("autocast-bf16", "autocast-f16", "f16", "bf16")
    ]
    assert [layers.cudnn_algorithm(cell, True) for cell in cells] == ["PERSIST_STATIC"] * 3 + ["STANDARD"]


@pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))
@pytest.mark.parametrize("spoil", [lambda h: h * 0, lambda h: -h, lambda h: h.flip(1)])
def test_a_wrong_character_model_is_seen(monkeypatch, spoil):
    """Which no loss at the beginning of training shows: every h gives almost the same there."""
    here, real = rehearsal(stage="characters"), characters.Ours.forward
    monkeypatch.setattr(characters.Ours, "forward", lambda self, ids: self.out(spoil(self.rnn(ids)[0])))
    (item,) = characters.items(here)
    assert all(row["wrong"] for row in characters.run(here, item))
    monkeypatch.setattr(characters.Ours, "forward", real)
    assert not any(row["wrong"] for row in characters.run(here, item))


@pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))
def test_the_sweep_judges_the_planners_pick_too(monkeypatch):
    here, real = rehearsal(stage="sweep"), place.Rehearsal.forward
    item = sweep.items(here, "f32")[0]
    found = list(sweep.run(here, item))
    assert not any(row["wrong"] for row in found)

    planned = place.described(here.choose("f32", 24, 3)[0])["tiling"]

    def wrong(self, plan, *args):
        h, *rest = real(self, plan, *args)
        return (h * 2 if place.described(plan.forward)["tiling"] == planned else h, *rest)

    monkeypatch.setattr(place.Rehearsal, "forward", wrong)
    spoilt = list(sweep.run(here, item))
    assert [row["wrong"] for row in spoilt] == [True] + [False] * (len(found) - 1)
    assert spoilt[0]["planner"]


def test_what_there_was_no_time_for_is_left(tmp_path):
    order = {"rehearse": True, "out": str(tmp_path), "until": 0.0, "lost": [], "stage": "sweep-f32"}
    here = place.at(order)
    assert list(sweep.run(here, sweep.items(here, "f32")[0])) == []
    assert here.left_out > 0
    order |= {"after": 0, "progress": str(tmp_path / "progress")}
    child.work(order)
    assert json.loads((tmp_path / "progress").read_text())["left"] > 0


def test_the_sanitizer_runs_the_tilings_that_were_wrong(monkeypatch):
    """Also where it runs one case of all."""
    numbers = []
    monkeypatch.setattr(right, "_picks", lambda place, kernel, math, case, number: numbers.append(number) or [])
    for cases in (right.CASES, right.CASES[3:4]):
        list(right.of(rehearsal(), "single_block", "bf16", cases))
    assert numbers == [*range(len(right.CASES)), 3]


def test_the_sanitizer_does_not_look_at_an_earlier_run(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps({"t": 5.0, **row}) + "\n" for row in MADE_UP))
    order = {"rehearse": False, "out": str(tmp_path), "until": 1e12, "lost": [], "stage": "sanitizer"}
    assert len(sanitizer.items(place.Place({**order, "begin": 4.0}))) == 2
    assert sanitizer.items(place.Place({**order, "begin": 6.0})) == []


def test_the_sanitizer_looks_at_what_was_wrong_or_lost():
    assert sanitizer.wrong(list(MADE_UP)) == [("single_block", "f32", ""), ("single_block", "bf16", "odd")]
    assert sanitizer.said(sanitizer.CANNED)[1] == "========= Invalid __global__ read of size 16 bytes"


def test_lines_of_the_microbenchmarks_are_rows_as_they_come():
    assert ubench.parsed('{"mma_latency":33.1}\n') == {"mma_latency": 33.1}
    assert ubench.parsed("Segmentation fault\n") == {"said": "Segmentation fault"}


def test_a_call_that_raises_is_left_out_of_the_turns():
    def bad():
        raise ValueError("no such kernel")

    seconds, about = measure.in_turns(rehearsal(), {"fine": lambda: [], "bad": bad})
    assert list(seconds) == ["fine"]
    assert about == {"bad": "ValueError: no such kernel", "fine": "1 x 1, 1.00 to 1.00"}


def test_what_it_takes_from_the_backend_is_there():
    """None of this runs here without a GPU, so a name that is gone would show on one first."""
    for name in ("not_built", "_wrong_device", "_gpu", "_on", "requested_kernel"):
        assert hasattr(cuda, name)
    assert list(inspect.signature(cuda_launch.forward).parameters) == ["rt", "plan", "inputs"]
    assert list(inspect.signature(cuda_launch.backward).parameters) == ["rt", "plan", "inputs", "saved", "grads"]
    assert list(inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters)[:3] == [
        "self",
        "pool",
        "capture_error_mode",
    ]
    assert hasattr(torch.Generator, "graphsafe_set_state")


@pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))
def test_a_kernel_that_was_lost_is_not_used_by_module_calls():
    found = rehearsal(lost=[["right", "single_block bf16"]])
    found.start()
    assert found.avoid("bf16", 24, 3) == "per_step"
    assert found.avoid("f32", 24, 3) == ""
