"""`python -m benchmarks.gpu_day` without a GPU: what is lost with a process, the limits, the whole rehearsal."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.gpu_day import child, host, ncu, program, row_file, stages
from tests.benchmarks.gpu_days import day, read, stage_rows
from tests.hostsim import build


def test_a_stage_continues_after_the_item_that_crashed_its_process(tmp_path):
    done = day(tmp_path, "--stage", "env", "cudnn", fault="cudnn:1:trap")
    assert done.returncode == 1
    lost, end = stage_rows(tmp_path, "cudnn")
    assert lost["code"] == -11
    assert lost["lost"].startswith("f32 2x16")
    assert "planted: trap" in lost["error"]
    assert (end["code"], end["losses"], end["items"]) == (0, 1, 3)
    assert {row["math"] for row in read(tmp_path, "cudnn")} == {"bf16", "autocast-bf16"}
    assert stage_rows(tmp_path, "env")[0]["code"] == 0
    assert len(read(tmp_path, "env")) == 4


def test_a_hanging_process_is_killed_and_its_stage_continues(tmp_path):
    done = day(tmp_path, "--stage", "cudnn", fault="cudnn:0:hang", timeout="12")
    assert done.returncode == 1
    lost, end = stage_rows(tmp_path, "cudnn")
    assert lost["code"] == "silent for 12 s"
    assert end["code"] == 0
    assert {row["math"] for row in read(tmp_path, "cudnn")} == {"f32", "autocast-bf16"}


def test_an_exception_becomes_a_row_and_the_stage_continues_in_its_process(tmp_path):
    assert day(tmp_path, "--stage", "cudnn", fault="cudnn:0:raise").returncode == 1
    errors = [row for row in read(tmp_path, "cudnn") if "error" in row]
    assert [row["error"] for row in errors] == ["RuntimeError: planted"]
    assert errors[0]["item"].startswith("bf16 1x16")
    (end,) = stage_rows(tmp_path, "cudnn")
    assert (end["code"], end["failed"]) == (1, 1)
    assert len(read(tmp_path, "cudnn")) > 5


def test_a_run_ends_within_its_seconds(tmp_path):
    done = day(tmp_path, "--stage", "cudnn", "--seconds", "14", fault="cudnn:0:hang")
    assert done.returncode == 1
    assert stage_rows(tmp_path, "cudnn")[-1]["code"] == "out of time"
    assert "---- stages" in done.stdout


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="no stage is called 'swep', expected some of env, ubench"):
        stages.chosen(["swep"])
    assert [stage.name for stage in stages.chosen(["sweep", "env"])] == ["env", "sweep-bf16", "sweep-f32"]


def test_the_expected_times_of_all_stages_fit_into_eight_minutes():
    assert sum(stage.expected for stage in stages.STAGES) <= 480
    assert all(stage.expected < stage.limit for stage in stages.STAGES)


def test_a_program_that_takes_too_long_is_ended_with_its_children():
    text, code = program.output(["bash", "-c", "sleep 3600 & echo $!; sleep 3600"], 3)
    assert code == "ended after 3 s"
    status = Path("/proc", str(int(text)), "stat")
    with suppress(OSError):  # it is gone, or waits only to be collected by its new parent
        for _ in range(1000):
            if status.read_text().rsplit(")", 1)[1].split()[0] in "ZX":
                return
            time.sleep(0.01)
    assert not status.exists()


def test_error_columns_name_the_exception_and_the_file_that_raised_it():
    try:
        raise KeyError("x")
    except KeyError as error:
        row = child.error_columns(error)
    assert row["error"] == "KeyError: 'x'"
    assert any("test_gpu_day_driver.py" in line for line in row["trace"])


@pytest.mark.slow
@pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))
def test_a_rehearsal_runs_every_stage_without_errors(tmp_path):
    done = day(tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()[-4000:]
    assert len(list(tmp_path.iterdir())) <= 8
    assert [row["name"] for row in read(tmp_path, "stage")] == stages.names()
    judged = read(tmp_path, "right")
    assert judged
    assert all(row["fine"] for row in judged if "fine" in row)
    assert "lean" in {row["kernel"] for row in judged if "fine" in row}
    assert {"lean", "cooperative"} <= {row["kernel"] for row in read(tmp_path, "sweep")}
    for row in read(tmp_path, "sweep"):
        assert {"math", "H", "B", "backward", "us", "fixed_us", "status", "planner", "kernel", "predicted_us"} <= set(
            row
        )
        assert {"groups", "k_splits", "row_tiles"} <= set(row["tiling"])
        assert {"blocks", "l2_bytes", "products"} <= set(row["work"])
    assert all({"torch", "cuda"} <= set(row["seconds"]) for row in read(tmp_path, "module"))
    others = {name for row in read(tmp_path, "module") for name in row["seconds"]} - {"torch", "cuda"}
    assert others == {"cooperative"}  # lean is picked where it can run
    timed = [row for row in read(tmp_path, "host") if "host_us" in row]
    assert {(row["library"], row["mode"]) for row in timed} == {(n, m) for n in ("cuda", "torch") for m in host.MODES}
    assert len([row for row in read(tmp_path, "host") if "own_us" in row]) > host.TOP
    assert len([row for row in read(tmp_path, "ncu") if "hot" in row]) == 2 * len(ncu.LAUNCHES)
    assert not [row for row in row_file.read(tmp_path / "raw.jsonl") if "error" in row and row["stage"] != "stage"]
