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
    correctness,
    executor,
    graph,
    host,
    layers,
    measure,
    module,
    sanitizer,
    sweep,
    train,
    ubench,
)
from benchmarks.gpu_day import cudnn as cudnn_stage
from fastlstm.backends.cuda import backend as cuda
from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from tests.benchmarks.gpu_days import MADE_UP, rehearsal
from tests.hostsim import build


def test_the_cudnn_stage_times_every_size_and_layout_once():
    dense = {(c.math, c.H, c.B) for c in cudnn_stage.all_configs() if c.layout == "dense" and c.L == 1}
    for math in ("f16", "bf16", "tf32", "f32"):
        for H in (128, 256, 512, 768, 1024, 1536):
            assert {(math, H, B) for B in (1, 16, 64, 128)} <= dense
    assert {c.layout for c in cudnn_stage.all_configs()} == {"dense", "packed", "projected", "bidirectional"}
    assert len(set(cudnn_stage.all_configs())) == len(cudnn_stage.all_configs())
    assert len(set(module.all_configs())) == len(module.all_configs())


def test_copies_for_comparison_have_no_autograd_graph():
    w = torch.ones(3, requires_grad=True)
    assert not any(tensor.requires_grad for tensor in graph.copies([w * 2, torch.ones(2)]))


def test_functions_of_a_profile_are_rows():
    profile = cProfile.Profile()
    profile.runcall(host._repeat, lambda: sorted([2, 1]), 4)
    by_name = {row["name"].split()[-1]: row for row in host.functions(pstats.Stats(profile), 4)}
    assert by_name["_repeat"]["ncalls"] == 0.25
    assert next(row for name, row in by_name.items() if "sorted" in name or "built-in" in row["name"])["ncalls"] == 1


def test_operations_of_a_call_are_counted_by_name():
    cpu = SimpleNamespace(rehearsal=True, sync=lambda: None)
    (row,) = host._counted(cpu, lambda: torch.ones(2) + torch.ones(2))
    assert (row["names"]["aten::add"], row["names"]["aten::ones"]) == (1, 2)
    assert row["launches"] == sum(row["names"].values())


def test_per_step_has_no_time_of_one_kernel_alone():
    assert train._alone(rehearsal(), lambda: None, "per_step", 4) is None


def test_the_relative_difference_is_infinite_where_one_side_is_nan():
    one, nan = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert layers.relative_difference([one, one], [one, one]) == 0
    for actual in ([nan, one], [one, nan]):
        assert layers.relative_difference(actual, [one, one]) == float("inf")
    assert layers.relative_difference([one, one], [one, nan]) == float("inf")


def test_the_cudnn_algorithm_under_autocast_is_that_of_float16():
    configs = [
        layers.LayerConfig("dense", math, 1, 512, 16, 0) for math in ("autocast-bf16", "autocast-f16", "f16", "bf16")
    ]
    assert [layers.cudnn_algorithm(config, True) for config in configs] == ["PERSIST_STATIC"] * 3 + ["STANDARD"]


@pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))
@pytest.mark.parametrize("damage", [lambda h: h * 0, lambda h: -h, lambda h: h.flip(1)])
def test_the_characters_stage_marks_a_wrong_model_as_wrong(monkeypatch, damage):
    """Which no loss at the beginning of training shows: every h gives almost the same there."""
    simulation, original = rehearsal(stage="characters"), characters.FastlstmCharacterModel.forward
    monkeypatch.setattr(
        characters.FastlstmCharacterModel, "forward", lambda self, ids: self.out(damage(self.rnn(ids)[0]))
    )
    (item,) = characters.items(simulation)
    assert all(row["wrong"] for row in characters.run(simulation, item))
    monkeypatch.setattr(characters.FastlstmCharacterModel, "forward", original)
    assert not any(row["wrong"] for row in characters.run(simulation, item))


@pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))
def test_the_sweep_also_checks_the_results_of_the_planners_pick(monkeypatch):
    simulation, original = rehearsal(stage="sweep"), executor.SimulatedExecutor.forward
    item = sweep.items(simulation, "f32")[0]
    rows = list(sweep.run(simulation, item))
    assert not any(row["wrong"] for row in rows)

    planned = executor.choice_columns(simulation.choose("f32", 24, 3)[0])["tiling"]

    def wrong(self, plan, *args):
        h, *rest = original(self, plan, *args)
        return (h * 2 if executor.choice_columns(plan.forward)["tiling"] == planned else h, *rest)

    monkeypatch.setattr(executor.SimulatedExecutor, "forward", wrong)
    damaged = list(sweep.run(simulation, item))
    assert [row["wrong"] for row in damaged] == [True] + [False] * (len(rows) - 1)
    assert damaged[0]["planner"]


def test_tilings_and_items_without_time_are_counted_as_left(tmp_path):
    order = {"rehearse": True, "out": str(tmp_path), "until": 0.0, "lost": [], "stage": "sweep-f32"}
    simulation = executor.executor_for(order)
    assert list(sweep.run(simulation, sweep.items(simulation, "f32")[0])) == []
    assert simulation.left_out > 0
    order |= {"after": 0, "progress": str(tmp_path / "progress")}
    child.work(order)
    assert json.loads((tmp_path / "progress").read_text())["left"] > 0


def test_the_sanitizer_runs_the_tilings_that_were_wrong(monkeypatch):
    """Also where it runs one case of all."""
    numbers = []
    monkeypatch.setattr(
        correctness, "_picks", lambda executor, kernel, math, case, number: numbers.append(number) or []
    )
    for cases in (correctness.CASES, correctness.CASES[3:4]):
        list(correctness.check_kernel(rehearsal(), "single_block", "bf16", cases))
    assert numbers == [*range(len(correctness.CASES)), 3]


def test_the_sanitizer_ignores_rows_of_an_earlier_run(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps({"t": 5.0, **row}) + "\n" for row in MADE_UP))
    order = {"rehearse": False, "out": str(tmp_path), "until": 1e12, "lost": [], "stage": "sanitizer"}
    assert len(sanitizer.items(executor.GpuExecutor({**order, "begin": 4.0}))) == 2
    assert sanitizer.items(executor.GpuExecutor({**order, "begin": 6.0})) == []


def test_the_sanitizer_runs_the_kernels_whose_blocks_wait_where_nothing_was_wrong(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text(json.dumps({"t": 5.0, "stage": "right", "kernel": "lean", "math": "bf16", "fine": True}) + "\n")
    order = {"rehearse": False, "out": str(tmp_path), "until": 1e12, "lost": [], "stage": "sanitizer"}
    items = sanitizer.items(executor.GpuExecutor(order))
    assert [item.values[0] for item in items] == ["lean", "cooperative"]
    assert {item.values[2] for item in items} <= {case.id for case in correctness.CASES}


def test_each_call_of_the_sweep_times_lean_and_the_other_kernels_apart():
    """A process that is lost with `lean` takes nothing of the others with it."""
    simulation = rehearsal(stage="sweep")
    items = sweep.items(simulation, "bf16", "f32")
    assert [item.values[4] for item in items if item.values[0] == "bf16"] == [True, False] * 2
    assert not any(item.values[4] for item in items if item.values[0] == "f32")
    assert len({item.key for item in items}) == len(items)
    for item in items:
        math, H, B, back, lean = item.values
        planned = simulation.choose(math, H, B)[back]
        selected = sweep._selected(simulation, math, H, B, back, lean, planned)
        assert {(choice.kernel == "lean") for choice, _ in selected} == {lean}
        assert sum(pick for _, pick in selected) == ((planned.kernel == "lean") == lean)


def test_the_smoke_test_runs_lean_in_every_type_that_it_takes():
    simulation = rehearsal()
    assert [item.what for item in correctness.items(simulation)][:2] == ["lean bf16", "lean tf32"]
    for kernel, math in (("lean", "bf16"), ("lean", "tf32")):
        rows = list(correctness.check_kernel(simulation, kernel, math, correctness.cases(simulation)))
        assert all(row["fine"] for row in rows if "fine" in row)
        assert {row["case"] for row in rows if "fine" in row} == {"dense", "packed reverse", "resets ids"}
        assert {row["backward"] for row in rows if "fine" in row} == {False, True}


def test_the_sanitizer_selects_wrong_cases_and_kernels_that_lost_their_process():
    assert sanitizer.wrong(list(MADE_UP)) == [("single_block", "f32", ""), ("single_block", "bf16", "odd")]
    assert sanitizer.report_lines(sanitizer.CANNED)[1] == "========= Invalid __global__ read of size 16 bytes"


def test_lines_of_the_microbenchmarks_become_rows():
    assert ubench.parsed('{"mma_latency":33.1}\n') == {"mma_latency": 33.1}
    assert ubench.parsed("Segmentation fault\n") == {"said": "Segmentation fault"}


def test_a_call_that_raises_is_left_out_of_the_turns():
    def bad():
        raise ValueError("no such kernel")

    seconds, about = measure.in_turns(rehearsal(), {"fine": lambda: [], "bad": bad})
    assert list(seconds) == ["fine"]
    assert about == {"bad": "ValueError: no such kernel", "fine": "1 x 1, 1.00 to 1.00"}


def test_names_that_the_executor_takes_from_the_backend_and_torch_exist():
    """None of this runs here without a GPU, so a name that is gone would show on one first."""
    for name in ("not_built", "_wrong_device", "_gpu", "_on", "NAME"):
        assert hasattr(cuda, name)
    assert list(inspect.signature(cuda_launch.forward).parameters) == ["rt", "plan", "inputs"]
    assert list(inspect.signature(launch_backward.backward).parameters) == [
        "rt",
        "plan",
        "inputs",
        "saved",
        "grads",
        "bias",
    ]
    assert list(inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters)[:3] == [
        "self",
        "pool",
        "capture_error_mode",
    ]
    assert hasattr(torch.Generator, "graphsafe_set_state")


@pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))
def test_a_kernel_that_lost_its_process_is_not_used_by_module_calls():
    simulation = rehearsal(lost=[["right", "lean bf16"]])
    simulation.start()
    assert simulation.choose("bf16", 24, 3)[0].kernel == "lean"
    assert simulation.avoid_failed_kernels("bf16", 24, 3) == "cooperative"
    assert simulation.avoid_failed_kernels("f32", 24, 3) == ""
    simulation.timed_out.add(("cooperative", "bf16", True))
    assert simulation.avoid_failed_kernels("bf16", 24, 3) == "per_step"
    simulation.force_kernel("")


@pytest.mark.parametrize("math", ["bf16", "tf32"])
def test_launches_of_several_layers_are_judged(math):
    simulation = rehearsal()
    assert [item.values for item in correctness.items(simulation)][-1][0] == "lean_layers"
    rows = list(correctness.check_layers(simulation, math, correctness.cases(simulation)))
    assert {row["kernel"] for row in rows} == {"lean_layers"}
    judged = [row for row in rows if "fine" in row]
    assert {row["case"].partition(", ")[2] for row in judged} == {"2 layers", "3 layers", "2 directions"}
    assert all(row["fine"] for row in judged)
