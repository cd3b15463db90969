"""`python -m benchmarks.before_after`: two workers, one table. No assertion is about time."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.before_after import __main__ as before_after
from benchmarks.before_after import worker

OPTIONS = ["--seconds", "0", "--threads", "1"]


def test_comparing_a_tree_with_itself_writes_a_row_of_positive_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(before_after, "SAMPLE_SECONDS", 1e-4)
    out = tmp_path / "table.csv"
    status = before_after.main([str(before_after.TREE), "--only", "one-step/1x8$", "--out", str(out), *OPTIONS])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert shown.count("one-step/1x8") == 2, "its line, and the worst"
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "one-step/1x8"
    assert int(row["rounds"]) == before_after.LEAST_ROUNDS
    assert all(float(row[name]) > 0 for name in ("before_ms", "after_ms", "speed", "torch_before", "torch_after"))


def test_every_request_is_one_that_the_worker_has():
    requests = before_after.requests(threads=2)
    assert {request["build"] for request in requests.values()} == {
        *("layer", "training_step", "sampling", "stream", "decoder", "charlm")
    }
    assert all(hasattr(worker, request["build"]) for request in requests.values())
    assert requests["scaling-threads/B3-4"]["threads"] == 4
    assert requests["packed-bidirectional/H256"]["arguments"]["bidirectional"] is True
    assert not any(name.startswith("gpu") for name in requests)


SMALL = {
    "layer": {"T": 3, "B": 2, "I": 4, "H": 5, "P": 3, "lengths": (3, 2), "initial": True, "projection": True},
    "training_step": {"L": 1, "H": 8, "B": 2, "T": 3},
    "sampling": {"L": 1, "H": 8, "num": 2},
    "decoder": {"L": 1, "H": 8},
    "stream": {"L": 1, "H": 8},
    "charlm": {"num": 1},
}


@pytest.mark.parametrize("build", SMALL)
def test_the_worker_builds_and_times_every_kind_of_request(build: str):
    arguments = SMALL[build]
    if build == "layer":
        arguments = {"case": arguments, "L": 2, "bidirectional": True, "train": True}
    timer = worker.CaseTimer()
    reply = timer.build(build, arguments, threads=1)
    assert len(reply["norms"]) == {"layer": 3 + 1 + 2 * 2 * 5, "training_step": 1, "stream": 8}.get(build, 0)
    assert all(norm > 0 for norm in reply["norms"])
    assert all(timer.time(contender, 1)["seconds"] > 0 for contender in reply["contenders"])


def test_a_layer_of_the_worker_has_the_outputs_of_torch():
    arguments = {"case": SMALL["layer"], "L": 1, "bidirectional": False, "train": True}
    steps = worker.layer(**arguments)
    for out, expected in zip(steps["fastlstm"](), steps["torch"](), strict=True):
        assert out.shape == expected.shape
        assert (out - expected).norm() <= 1e-5 * expected.norm()


def test_a_case_that_fails_in_a_worker_is_an_error_and_the_worker_goes_on():
    worker_process = before_after.WorkerProcess(before_after.TREE)
    try:
        with pytest.raises(before_after.CaseError, match="KeyError: 'no_such_build'"):
            worker_process.ask(build="no_such_build", arguments={}, threads=1)
        assert worker_process.ask(build="stream", arguments=SMALL["stream"], threads=1)["contenders"] == ["fastlstm"]
    finally:
        worker_process.process.communicate()


def test_a_folder_without_the_package_is_refused(tmp_path: Path):
    with pytest.raises(SystemExit, match="give the root of a checkout"):
        before_after.WorkerProcess(tmp_path)
