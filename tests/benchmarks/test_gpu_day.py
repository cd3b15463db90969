"""`python -m benchmarks.gpu_day` without a GPU: what is lost with a process, the limits, the table, the whole rehearsal."""

from __future__ import annotations

import cProfile
import csv
import gzip
import inspect
import json
import os
import pstats
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu_day import (
    child,
    graph,
    host,
    measure,
    module,
    ncu,
    place,
    program,
    rows,
    sanitizer,
    sass,
    stages,
    table,
    train,
    ubench,
)
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
    {"stage": "kernelbench", "problem": 35, "math": "tf32", "graph": False, "ms": {"torch": 27.0, "cuda": 9.0},
     "published_ms": 27.2},
    {"stage": "graph", "math": "bf16", "H": 512, "layout": "packed", "mode": "training", "same": None},
    {"stage": "triton", "fine": True},
    {"stage": "train", "math": "bf16", "H": 256, "B": 64,
     "us": {"input": 0.5, "forward": 3.5, "forward_kernel": 3.25, "backward": 9.0, "backward_kernel": None, "dx": 0.75}},
    {"stage": "host", "library": "cuda", "mode": "training", "host_us": 300.4, "done_us": 310.0},
    {"stage": "host", "library": "cuda", "mode": "training", "name": "lstm.py:1 forward", "own_us": 40.2},
    {"stage": "ncu", "kernel": "void a::persistent_forward<b>(c)", "H": 256, "B": 16, "samples": 9,
     "hot": [[16, "LDS R2, [R3]", 7, "wait 5"]]},
    {"stage": "module", "item": "bf16 2x512", "error": "RuntimeError: no"},
)  # fmt: skip


def test_the_table_of_a_made_up_run(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps({"t": 5.0 + i, **row}) + "\n" for i, row in enumerate(MADE_UP)))
    text = table.of(path)
    for words in (
        "right        code -11, 3.0 s lost tile f32",
        "Segmentation fault",
        "---- right: 1 of 2, worst nan of what is allowed",
        "tile       bf16  WRONG 1 of 2, nan: odd backward",
        "  bf16 1x512 B16: 1 (2.00) - |\n",
        "f16           H512   dense     B16 5.25",
        "  bf16 H512 B16: 2 (1.5) < 1.75 pers 2x8x1x1 1 WRONG | -\n",
        "  bf16 H256 B64: forward 3.50 (3.25) backward 9.00 (step) input 0.50 others 0.75\n",
        "graph: 0 of 1 replays equal; not: ['bf16 512 packed training']",
        "  2x128 B50 tf32: 2.000 (2.00)\n",
        "  35 tf32: 9 (3.00); 27.2\n",
        "  training: cuda 300 (310)\n  most of training: forward 40\n",
        "  persistent_forward H256 B16: 9 samples, 7 LDS R2, [R3] (wait 5)\n",
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


def test_the_source_page_is_cut_to_the_columns_that_matter(tmp_path):
    forward, backward = sass.launches(ncu.CANNED_SOURCE)
    assert forward.kernel == "void persistent_forward_kernel<__nv_bfloat16>(Laid<ForwardArgs>)"
    assert forward.columns == [
        "Address", "Source", "Warp Stall Sampling (All Samples)", "Warp Stall Sampling (Not-issued Samples)", "# Samples",
        "Instructions Executed", "stall_long_sb", "stall_wait", "stall_long_sb (Not Issued)", "stall_wait (Not Issued)",
    ]  # fmt: skip
    assert forward.rows[1][1] == "@!P0 HMMA.16816.F32 R8, R4, R6, R8"
    assert [len(forward.rows), len(backward.rows)] == [3, 1]
    said = sass.summary(forward)
    assert (said["instructions"], said["samples"], said["stalls"]) == (3, 312, {"long_sb": 282, "wait": 30})
    assert said["hot"][0] == [16, "@!P0 HMMA.16816.F32 R8, R4, R6, R8", 300, "long_sb 280"]
    assert sass.launches(sass.written([forward, backward])) == [forward, backward]


def test_a_source_page_is_kept_and_told_of(tmp_path, capsys):
    read = list(ncu.source(tmp_path, "persistent H256 B16", ncu.CANNED_SOURCE))
    assert [row["samples"] for row in read] == [312, 7]
    path = tmp_path / read[0]["file"]
    assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name)
    assert next(csv.reader([gzip.decompress(path.read_bytes()).decode().splitlines()[0]]))[1] == read[0]["kernel"]
    sass.main([str(path)])
    assert "280" in capsys.readouterr().out


def test_a_source_page_that_cannot_be_read_is_kept_as_it_came(tmp_path):
    (row,) = ncu.source(tmp_path, "persistent H256 B16", "==ERROR== no source page\n")
    assert row["no_source"] == "==ERROR== no source page"
    assert gzip.decompress((tmp_path / row["file"]).read_bytes()) == b"==ERROR== no source page\n"


FAKE_NCU = """#!{python}
import sys
given = sys.argv[1:]
if "-o" in given:
    open(given[given.index("-o") + 1] + ".ncu-rep", "w").write("a report")
    print("==PROF== done")
elif {fault!r} == "options" and ("--print-source" in given or "--print-details" in given):
    sys.exit("unrecognised option")
elif "details" in given:
    from benchmarks.gpu_day import ncu
    print(ncu.CANNED)
elif {fault!r} == "source":
    sys.exit("==ERROR== no source")
else:
    from benchmarks.gpu_day import ncu
    print(ncu.CANNED_SOURCE)
"""


@pytest.mark.parametrize(("fault", "samples"), [("", [312, 7]), ("options", [312, 7]), ("source", [])])
def test_details_come_whatever_becomes_of_the_source_page(tmp_path, monkeypatch, fault, samples):
    fake = tmp_path / "ncu"
    fake.write_text(FAKE_NCU.format(python=sys.executable, fault=fault))
    fake.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(program, "tool", lambda name: str(fake))
    ordered = place.Place({"out": str(tmp_path), "until": time.time() + 60, "lost": [], "stage": "ncu"})
    found = list(ncu.run(ordered, ncu.items(ordered)[1]))
    assert [row["metrics"]["Duration (us)"] for row in found if "metrics" in row] == [143.2, 201.0]
    assert [row["samples"] for row in found if "samples" in row] == samples
    assert ["no source" in row["no_source"] for row in found if "no_source" in row] == ([] if samples else [True])
    assert "Elapsed Cycles" in (tmp_path / "ncu.txt").read_text()


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
    assert train._alone(rehearsal(), lambda: None, "step", 4) is None


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
    timed = [row for row in read(tmp_path, "host") if "host_us" in row]
    assert {(row["library"], row["mode"]) for row in timed} == {(n, m) for n in ("cuda", "torch") for m in host.MODES}
    assert len([row for row in read(tmp_path, "host") if "own_us" in row]) > host.TOP
    assert len([row for row in read(tmp_path, "ncu") if "hot" in row]) == 2 * len(ncu.LAUNCHES)
    assert not [row for row in rows.read(tmp_path / "raw.jsonl") if "error" in row and row["stage"] != "stage"]
