"""`python -m benchmarks.gpu_day` without a GPU: what is lost with a process, the limits, the table, the whole rehearsal."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_day import child, measure, module, ncu, place, program, rows, sanitizer, stages, table, ubench
from benchmarks.gpu_day import cudnn as cudnn_stage
from fastlstm.backends import cuda, cuda_op
from fastlstm.backends.hostsim import build

ROOT = Path(__file__).parents[2]


def day(folder: Path, *arguments: str, fault: str = "", patience: str = "") -> subprocess.CompletedProcess:
    env = {**os.environ, "FASTLSTM_GPU_DAY_FAULT": fault, "PYTHONPATH": str(ROOT)}
    env |= {"FASTLSTM_GPU_DAY_PATIENCE": patience} if patience else {}
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--rehearse", "--out", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=400)


def read(folder: Path, stage: str) -> list[dict]:
    return [row for row in rows.read(folder / "raw.jsonl") if row["stage"] == stage]


def fates(folder: Path, name: str) -> list[dict]:
    return [row for row in read(folder, "stage") if row["name"] == name]


def test_a_stage_goes_on_behind_the_item_that_took_its_process(tmp_path):
    done = day(tmp_path, "--stage", "env", "cudnn", fault="cudnn:1:trap")
    assert done.returncode == 1
    lost, end = fates(tmp_path, "cudnn")
    assert lost["code"] == -11
    assert lost["lost"].startswith("f32 2x16")
    assert "planted: trap" in lost["error"]
    assert (end["code"], end["losses"], end["items"]) == (0, 1, 3)
    assert {row["math"] for row in read(tmp_path, "cudnn")} == {"bf16", "autocast-bf16"}
    assert fates(tmp_path, "env")[0]["code"] == 0
    assert len(read(tmp_path, "env")) == 4


def test_a_stage_that_hangs_is_ended_and_goes_on(tmp_path):
    begin = time.time()
    done = day(tmp_path, "--stage", "cudnn", fault="cudnn:0:hang", patience="3")
    assert done.returncode == 1
    assert time.time() - begin < 120
    lost, end = fates(tmp_path, "cudnn")
    assert lost["code"] == "silent for 3 s"
    assert end["code"] == 0
    assert {row["math"] for row in read(tmp_path, "cudnn")} == {"f32", "autocast-bf16"}


def test_an_exception_is_a_row_and_the_stage_goes_on_in_its_process(tmp_path):
    assert day(tmp_path, "--stage", "cudnn", fault="cudnn:0:raise").returncode == 1
    errors = [row for row in read(tmp_path, "cudnn") if "error" in row]
    assert [row["error"] for row in errors] == ["RuntimeError: planted"]
    assert errors[0]["item"].startswith("bf16 1x16")
    (end,) = fates(tmp_path, "cudnn")
    assert (end["code"], end["failed"]) == (1, 1)
    assert len(read(tmp_path, "cudnn")) > 5


def test_it_stops_by_itself(tmp_path):
    begin = time.time()
    done = day(tmp_path, "--stage", "cudnn", "--seconds", "14", fault="cudnn:0:hang")
    assert done.returncode == 1
    assert time.time() - begin < 30
    assert fates(tmp_path, "cudnn")[-1]["code"] == "out of time"
    assert "---- stages" in done.stdout


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="no stage is called 'swep', expected some of env, ubench"):
        stages.chosen(["swep"])
    assert [stage.name for stage in stages.chosen(["sweep", "env"])] == ["env", "sweep-bf16", "sweep-f32"]


def test_the_expected_minutes_fit():
    assert sum(stage.expected for stage in stages.STAGES) <= 480
    assert all(stage.expected < stage.limit for stage in stages.STAGES)


def test_what_is_timed_is_every_shape_that_is_promised():
    dense = {(c.math, c.H, c.B) for c in cudnn_stage.cells() if c.layout == "dense" and c.L == 1}
    for math in ("f16", "bf16", "tf32", "f32"):
        for H in (128, 256, 512, 768, 1024, 1536):
            assert {(math, H, B) for B in (1, 16, 64, 128)} <= dense
    assert {c.layout for c in cudnn_stage.cells()} == {"dense", "packed", "projected", "bidirectional"}
    assert len(set(cudnn_stage.cells())) == len(cudnn_stage.cells())
    assert len(set(module.cells())) == len(module.cells())


def test_numbers_that_json_does_not_have_are_words_and_cut_lines_are_left_out(tmp_path):
    store = rows.Rows(tmp_path)
    store.add("right", worst=float("nan"), us=1.23456789, tiling={"groups": 2}, t_=[float("inf")])
    store.add("sweep", stage="other", t=3)
    with open(store.path, "a") as file:
        file.write('{"stage": "right", "wor')
    first, second = rows.read(store.path)
    assert (first["worst"], first["us"], first["tiling"], first["t_"]) == ("nan", 1.23457, {"groups": 2}, ["inf"])
    assert second["stage"] == "sweep"


TILING = {"groups": 2, "k_splits": 8, "row_tiles": 1, "gate_splits": 1}
MADE_UP = (
    {"stage": "env", "what": "card", "gpu": "NVIDIA H100"},
    {"stage": "stage", "name": "right", "code": -11, "seconds": 3.0, "lost": "tile f32", "error": "a\nSegmentation fault"},
    {"stage": "stage", "name": "right", "code": 0, "seconds": 9.0, "losses": 1},
    {"stage": "right", "kernel": "tile", "math": "bf16", "case": "odd", "backward": True, "fine": False, "worst": 3.5},
    {"stage": "right", "kernel": "tile", "math": "bf16", "case": "odd", "backward": False, "fine": True, "worst": "nan"},
    *(
        {"stage": "module", "math": "bf16", "layout": "dense", "L": 1, "H": 512, "B": 16, "T": 128, "training": False,
         "graph": graph, "seconds": seconds, "wrong": False, "plan": "cuda: persistent: 128 blocks"}
        for graph, seconds in ((False, {"torch": 2e-3, "cuda": 1e-3}), (True, {"torch": 2e-3}))
    ),
    {"stage": "cudnn", "math": "f16", "layout": "dense", "L": 1, "H": 512, "B": 16, "mode": "training", "graph": True,
     "us": 5.25},
    *(
        {"stage": "sweep", "math": "bf16", "H": 512, "B": 16, "backward": False, "us": us, "wrong": wrong, "planner": planner,
         "predicted_us": 1.5, "kernel": "persistent", "tiling": TILING}
        for us, wrong, planner in ((2.0, False, True), (1.75, False, False), (0.5, True, False))
    ),
    {"stage": "characters", "L": 2, "H": 128, "B": 50, "math": "tf32", "autocast": "none", "graph": False,
     "characters_per_second": {"torch": 1e6, "cuda": 2e6}},
    {"stage": "kernelbench", "problem": 35, "math": "tf32", "graph": False, "ms": {"torch": 27.0}, "published_ms": 27.2},
    {"stage": "graph", "math": "bf16", "H": 512, "layout": "packed", "mode": "training", "same": None},
    {"stage": "triton", "fine": True},
    {"stage": "train", "math": "bf16", "H": 256, "B": 64, "us": {"input": 0.5}},
    {"stage": "module", "item": "bf16 2x512", "error": "RuntimeError: no"},
)  # fmt: skip


def test_the_table_of_a_made_up_run(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps({"t": 5.0 + i, **row}) + "\n" for i, row in enumerate(MADE_UP)))
    text = table.of(path)
    for words in (
        "right        code -11, 3.0 s lost tile f32",
        "Segmentation fault",
        "tile       bf16  1 of 2, nan, 3.50  WRONG: odd backward",
        "bf16  1x512   B16   dense    1/2 (2.00) - |  persistent",
        "f16           H512   dense     B16 5.25",
        "bf16  H512   B16   forward  2.00 (1.50)    1.75 (1.50) persistent 2x8x1x1, 3 tilings 1 WRONG",
        "graph: 0 of 1 replays equal; not: ['bf16 512 packed training']",
        "characters 2x128 B50 tf32 none: torch 1,000,000/s cuda 2,000,000/s",
        "kernelbench 35 tf32: torch 27.00 ms, published 27.2",
        "module bf16 2x512 (1): RuntimeError: no",
    ):
        assert words in text, text
    assert table.of(path, begin=1e9) == "---- stages\n0 rows in raw.jsonl, 0 s in all"


def test_the_table_stays_short(tmp_path):
    path = tmp_path / "raw.jsonl"
    many = [{**row, "t": 1.0, **({"H": h} if "H" in row else {})} for row in MADE_UP for h in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in many))
    assert len(table.of(path)) <= table.MOST


def test_what_nsight_compute_says_is_read():
    launches = ncu.parsed(ncu.CANNED)
    assert [name for name, _ in launches] == [
        f"void persistent_{way}_kernel<__nv_bfloat16>(Laid<{way.capitalize()}Args>)" for way in ("forward", "backward")
    ]
    assert launches[0][1]["Duration (us)"] == 143.2
    assert launches[0][1]["stall"].startswith("9.1 cycles waiting for a scoreboard dependency")
    assert launches[1][1] == {"Duration (us)": 201.0}
    assert ncu.parsed("==ERROR== no permission") == []


def test_the_sanitizer_looks_at_what_was_wrong_or_lost():
    assert sanitizer.wrong(list(MADE_UP)) == [("tile", "f32", ""), ("tile", "bf16", "odd")]
    assert sanitizer.said(sanitizer.CANNED)[1] == "========= Invalid __global__ read of size 16 bytes"


def test_lines_of_the_microbenchmarks_are_rows_as_they_come():
    assert ubench.parsed('{"mma_latency":33.1}\n') == {"mma_latency": 33.1}
    assert ubench.parsed("Segmentation fault\n") == {"said": "Segmentation fault"}


def test_a_program_that_takes_too_long_is_ended_with_its_children():
    begin = time.time()
    text, code = program.output(["bash", "-c", "echo begun; sleep 60 & sleep 60"], 0.5)
    assert (text, code) == ("begun\n", "ended after 0 s")
    assert time.time() - begin < 20


def rehearsal(**changes) -> place.Place:
    return place.at({"rehearse": True, "out": "", "until": 1e12, "lost": [], "stage": "right", **changes})


def test_a_call_that_raises_is_left_out_of_the_turns():
    def bad():
        raise ValueError("no such kernel")

    seconds, about = measure.in_turns(rehearsal(), {"fine": lambda: [], "bad": bad})
    assert list(seconds) == ["fine"]
    assert about == {"bad": "ValueError: no such kernel", "fine": "1 x 1"}


def test_what_it_takes_from_the_backend_is_there():
    """None of this runs here without a GPU, so a name that is gone would show on one first."""
    for name in ("not_built", "_wrong_device", "_gpu", "_on", "_forced"):
        assert hasattr(cuda, name)
    assert list(inspect.signature(cuda_op.forward).parameters)[:5] == ["rt", "plan", "x", "ids", "w_x"]
    assert list(inspect.signature(cuda_op.backward).parameters)[:6] == ["rt", "plan", "dh", "dc", "dh_n", "dc_n"]
    assert list(inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters)[:3] == [
        "self",
        "pool",
        "capture_error_mode",
    ]
    assert hasattr(torch.Generator, "graphsafe_set_state")


@pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
def test_a_kernel_that_was_lost_is_not_used_by_module_calls():
    found = rehearsal(lost=[["right", "tile bf16"]])
    found.start()
    assert found.avoid("bf16", 24, 3) == "step"
    assert found.avoid("f32", 24, 3) == ""


def test_trouble_tells_where():
    try:
        raise KeyError("x")
    except KeyError as error:
        row = child.trouble(error)
    assert row["error"] == "KeyError: 'x'"
    assert any("test_gpu_day.py" in line for line in row["trace"])


@pytest.mark.slow
@pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
def test_the_whole_rehearsal(tmp_path):
    done = day(tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()[-4000:]
    assert len(list(tmp_path.iterdir())) <= 8
    assert [row["name"] for row in read(tmp_path, "stage")] == stages.names()
    judged = read(tmp_path, "right")
    assert judged
    assert all(row["fine"] for row in judged if "fine" in row)
    for row in read(tmp_path, "sweep"):
        assert {"math", "H", "B", "backward", "us", "fixed_us", "status", "planner", "kernel", "predicted_us"} <= set(
            row
        )
        assert {"groups", "k_splits", "row_tiles"} <= set(row["tiling"])
        assert {"blocks", "l2_bytes", "products"} <= set(row["work"])
    assert all({"torch", "cuda"} == set(row["seconds"]) for row in read(tmp_path, "module"))
    assert not [row for row in rows.read(tmp_path / "raw.jsonl") if "error" in row and row["stage"] != "stage"]
