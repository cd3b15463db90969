"""`python -m benchmarks.gpu_check` without a GPU: a fake device, backends and cases that run on the CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import gpu_check, layer
from benchmarks.cases import SHORT
from benchmarks.layer import shape
from benchmarks.record import read
from benchmarks.suite import Timed
from benchmarks.work import Work as Contenders
from fastlstm.verify import checks, isolate
from fastlstm.verify.run import FINE, NO_GPU, WRONG, Machine, Plan, gpus

PLAN = Plan(("cuda", "reference"), checks.Table((SHORT[0],), ("float32",)), (), isolate.here)
MACHINE = Machine(torch.device("cpu"), "Fake GPU", lambda: 0.0)
LAYER = Timed("gpu-forward/small", partial(layer.layer, layer.Call(shape(3, 2, 4), train=False)))


def off() -> Contenders:
    x = torch.ones(3)
    return Contenders({"cpu": lambda: [x + 1], "torch": lambda: [x]})


def test_without_a_gpu_it_says_so(capsys):
    if gpus():
        pytest.skip("there is a GPU")
    assert gpu_check.main([]) == NO_GPU
    assert "there is no GPU" in capsys.readouterr().out


def test_checks_then_times_and_writes(tmp_path):
    said = []
    assert gpu_check.check(said.append, [MACHINE], gpu_check.Work(PLAN, (LAYER,), 0.01, tmp_path)) == FINE
    assert any("cuda: not here: " in line for line in said)
    assert any("reference: 1 checks passed, 0 wrong" in line for line in said)
    rows = read(tmp_path / "gpu-fake-gpu.csv")
    assert {row.contender for row in rows} == {"cpu", "dispatched", "torch"}
    assert all(row.torch == torch.__version__ for row in rows)


def test_a_wrong_output_is_not_timed_and_shows_in_the_code(tmp_path):
    said = []
    work = gpu_check.Work(PLAN, (Timed("gpu-x/off", off),), 0.01, tmp_path)
    assert gpu_check.check(said.append, [MACHINE], work) == WRONG
    assert any("gpu-x/off: WRONG" in line for line in said)
    assert read(tmp_path / "gpu-fake-gpu.csv") == []


def test_every_kind_of_layer_and_character_models_are_timed():
    groups = {case.group for case in gpu_check.timed()}
    kinds = ("training", "forward", "packed", "bidirectional", "projection", "one-step", "characters")
    assert groups == {f"gpu-{kind}" for kind in kinds}


def test_the_cases_can_be_built_here():
    """The same cases on the CPU, made small: what `timed` builds is right where there is no GPU to run it."""
    work = gpu_check.characters.training_step(1, 4, 2, 3, "cpu")
    work.check()
    assert set(work.runs) == {"cpu", "dispatched", "torch"}
