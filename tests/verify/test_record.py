"""The record of a verification: written whole or not at all, and what it means for a call."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastlstm import backends, dispatch
from fastlstm.backends import blocklist
from fastlstm.doctor import small_call
from fastlstm.verify import record

GPU = "Fake GPU 9000 (80 GB)"
CALL_TYPE = ("dense", "tf32", True)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CACHE", str(tmp_path))
    monkeypatch.setattr(record, "gpu_name", lambda device: GPU)
    record.forget()
    yield
    record.forget()


def row(H: int, B: int, T: int = 64, call_type=CALL_TYPE, **seconds: float) -> dict:
    layout, math, training = call_type
    return {"layout": layout, "math": math, "training": training, "H": H, "B": B, "T": T, "seconds": seconds}


def record_of(*rows: dict, **groups: dict) -> dict:
    return {"timings": list(rows), "passed": {}, "failed": {}, **groups}


PASSED = {"cuda": {"single_block": {"tf32": 9}, "per_step": {"tf32": 9}}, "triton": {"streamed": {"tf32": 9}}}


def spec(H: int = 128, B: int = 50, T: int = 50, **other):
    return replace(small_call(torch.device("cuda")), H=H, P=H, B=B, T=T, **other)


def test_each_gpu_model_has_one_file_with_a_plain_name(tmp_path):
    assert record.path(GPU) == tmp_path / "gpu-fake-gpu-9000-80-gb.json"


def test_folder_is_in_xdg_cache_home_where_that_is_set(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTLSTM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert record.folder() == tmp_path / "xdg" / "fastlstm"


def test_what_is_written_is_read_back():
    record.write(GPU, record_of(row(128, 32, torch=2.0, cuda=1.0)))
    assert record.read(GPU)["timings"][0]["seconds"] == {"torch": 2.0, "cuda": 1.0}


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path):
    record.write(GPU, record_of(row(128, 32, torch=2.0, cuda=1.0)))
    before = record.path(GPU).read_bytes()
    with pytest.raises(TypeError):
        record.write(GPU, record_of({"seconds": object()}))
    assert record.path(GPU).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [record.path(GPU).name]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', "null"])
def test_a_damaged_record_is_read_as_none(text):
    record.path(GPU).write_text(text)
    assert record.read(GPU) is None
    assert record.choice(torch.device("cuda"), spec()) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"failed": {"cuda": ["wrong"]}},
        {"failed": {"cuda": {"single_block": ["wrong"]}}},
        {"passed": None},
        {"timings": 1},
        {"timings": [{"seconds": {}}]},
        {"timings": [{**row(1, 1), "seconds": 1.0}]},
    ],
    ids=str,
)
def test_a_record_with_malformed_entries_is_read_as_none(changed):
    record.write(GPU, record_of(**changed))
    assert record.read(GPU) is None
    assert record.wrong_kernels(GPU, "cuda", "tf32") == frozenset()


@pytest.mark.parametrize("field", ["format", "identity"])
def test_a_record_of_other_kernels_or_another_torch_is_read_as_none(field):
    path = record.write(GPU, record_of(row(128, 32, torch=2.0, cuda=1.0)))
    path.write_text(json.dumps({**json.loads(path.read_text()), field: "other"}))
    record.read.cache_clear()
    assert record.read(GPU) is None


def test_identity_changes_with_the_kernels(monkeypatch, tmp_path):
    before = record.identity.__wrapped__()
    package = tmp_path / "fastlstm"
    (package / "backends").mkdir(parents=True)
    (package / "backends" / "cuda.py").write_text("changed")
    monkeypatch.setattr(record, "__file__", str(package / "verify" / "record.py"))
    first = record.identity.__wrapped__()
    (package / "backends" / "cuda.py").write_text("changed again")
    assert len({before, first, record.identity.__wrapped__()}) == 3


def test_without_a_record_there_is_no_choice_and_no_kernel_passed():
    assert record.choice(torch.device("cuda"), spec()) is None
    assert record.wrong_kernels(GPU, "cuda", "tf32") == frozenset()
    assert not record.all_passed(torch.device("cuda"), spec(), "cuda", ("single_block",))


def test_the_faster_of_two_that_beat_torch_wins():
    recorded = record_of(row(128, 64, torch=3.0, cuda=2.0, triton=1.0))
    assert record.winner(recorded, CALL_TYPE, 128, 64, 64) == "triton"


def test_torch_wins_where_a_backend_is_faster_by_less_than_the_margin():
    recorded = record_of(row(128, 64, torch=1.0, cuda=0.98))
    assert record.winner(recorded, CALL_TYPE, 128, 64, 64) == "torch"


def test_a_backend_wins_only_where_it_beats_torch_at_all_neighbouring_sizes():
    rows = [row(H, B, torch=2.0, cuda=1.0) for H in (64, 256) for B in (16, 64)]
    assert record.winner(record_of(*rows), CALL_TYPE, 100, 50, 64) == "cuda"
    rows[3]["seconds"]["cuda"] = 2.5
    assert record.winner(record_of(*rows), CALL_TYPE, 100, 50, 64) == "torch"
    assert record.winner(record_of(*rows), CALL_TYPE, 64, 50, 64) == "cuda"  # not between: the slow one is no neighbour
    del rows[3]["seconds"]["cuda"]
    assert record.winner(record_of(*rows), CALL_TYPE, 100, 50, 64) == "torch"


@pytest.mark.parametrize(
    ("H", "B", "T", "expected"),
    [
        (32, 8, 32, "cuda"),
        (31, 16, 64, "torch"),
        (129, 16, 64, "torch"),
        (64, 33, 64, "torch"),
        (64, 16, 10_000, "cuda"),
    ],
)
def test_torch_wins_at_sizes_far_from_those_that_were_timed(H, B, T, expected):
    assert record.winner(record_of(row(64, 16, torch=2.0, cuda=1.0)), CALL_TYPE, H, B, T) == expected


@pytest.mark.parametrize("call_type", [("packed", "tf32", True), ("dense", "float32", True), ("dense", "tf32", False)])
def test_torch_wins_for_a_call_type_that_was_not_timed(call_type):
    assert record.winner(record_of(row(64, 16, torch=2.0, cuda=1.0)), call_type, 64, 16, 64) == "torch"


def test_only_kernels_that_passed_in_the_type_of_a_call_count_as_passed():
    device = torch.device("cuda")
    record.write(GPU, record_of(passed=PASSED, failed={"cuda": {"per_step": {"tf32": ["wrong"]}}}))
    assert record.all_passed(device, spec(), "cuda", ("single_block",))
    assert not record.all_passed(device, spec(), "cuda", ("single_block", "per_step"))  # was found wrong later
    assert not record.all_passed(device, spec(), "cuda", ("cooperative",))
    assert not record.all_passed(device, spec(dtype=torch.float16), "cuda", ("single_block",))
    assert not record.all_passed(device, spec(), "triton", ("single_block",))
    assert record.wrong_kernels(GPU, "cuda", "tf32") == {"per_step"}
    assert record.wrong_kernels(GPU, "cuda", "float16") == record.wrong_kernels(GPU, "triton", "tf32") == frozenset()


def test_a_backend_wins_where_torch_has_no_time():
    assert record.winner(record_of(row(64, 16, cuda=1.0)), CALL_TYPE, 64, 16, 64) == "cuda"


def test_call_type_is_layout_arithmetic_and_training():
    assert record.call_type_of(spec()) == ("dense", "tf32", True)
    assert record.call_type_of(spec(packed=True, dtype=torch.float16, save=0)) == ("packed", "float16", False)
    assert record.call_type_of(spec(packed=True, projected=True))[0] == "projected"


class Backend:
    """A backend that runs one kernel."""

    def __init__(self, kernel: str):
        self.kernel = kernel

    def kernels(self, spec) -> tuple[str, ...]:
        return (self.kernel, self.kernel)


@pytest.fixture
def two_backends(monkeypatch):
    """Dispatch's view of cuda and triton, whose kernels the test may change."""
    fakes = {"cuda": Backend("single_block"), "triton": Backend("streamed")}
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: fakes.get(name) or load(name))
    monkeypatch.setattr(dispatch, "unsupported_reason", lambda name, spec: None)
    return fakes


def test_dispatch_follows_the_record(two_backends):
    assert dispatch.prefers_torch(spec(128, 64, 64))  # no record
    rows = [row(128, B, torch=2.0, triton=1.0, cuda=3.0) for B in (16, 64)]
    record.write(GPU, record_of(*rows, passed=PASSED))
    assert not dispatch.prefers_torch(spec(128, 64, 64))
    assert dispatch.choose(spec(128, 64, 64)) == "triton"
    assert dispatch.prefers_torch(spec(1024, 64, 64))  # not timed
    assert dispatch.choose(spec(1024, 64, 64)) == "cuda"  # resets, say: torch's path cannot


def test_dispatch_uses_no_kernel_that_did_not_pass(two_backends):
    """Sizes between those that were timed may get another kernel: one that was not checked, or was wrong."""
    rows = [row(H, 64, torch=2.0, triton=1.0) for H in (64, 256)]
    record.write(GPU, record_of(*rows, passed=PASSED))
    assert not dispatch.prefers_torch(spec(128, 64, 64))
    two_backends["triton"].kernel = "single_block"
    assert dispatch.prefers_torch(spec(128, 64, 64))
    two_backends["triton"].kernel = "streamed"
    record.write(GPU, record_of(*rows, passed=PASSED, failed={"triton": {"streamed": {"tf32": ["wrong"]}}}))
    assert dispatch.prefers_torch(spec(128, 64, 64))


def test_a_backend_that_cannot_run_the_call_any_more_is_not_chosen(two_backends, monkeypatch):
    record.write(GPU, record_of(row(128, 64, torch=2.0, cuda=1.0), passed=PASSED))
    assert not dispatch.prefers_torch(spec(128, 64, 64))
    monkeypatch.setattr(
        dispatch, "unsupported_reason", lambda name, spec: "no kernel is left" if name == "cuda" else None
    )
    assert dispatch.prefers_torch(spec(128, 64, 64))
    assert dispatch.choose(spec(128, 64, 64)) == "triton"


def test_kernels_that_the_record_has_as_wrong_are_blocked():
    record.write(GPU, record_of(failed={"cuda": {"single_block": {"tf32": ["wrong"]}}}))
    assert list(blocklist.blocked("cuda", 0, GPU, "tf32")) == ["single_block"]
    assert "found it wrong in tf32" in blocklist.blocked("cuda", 0, GPU, "tf32")["single_block"]
    assert not blocklist.blocked("cuda", 0, GPU, "float32")
    assert not blocklist.blocked("cuda", 0, "another GPU", "tf32")
    assert not blocklist.blocked("cuda", 0, GPU, "tf32", by_name=True)
    with blocklist.override_record({("cuda", "per_step", "float32")}):
        assert list(blocklist.blocked("cuda", 0, GPU, "float32")) == ["per_step"]
        assert not blocklist.blocked("cuda", 0, GPU, "tf32")
    assert list(blocklist.blocked("cuda", 0, GPU, "tf32")) == ["single_block"]
