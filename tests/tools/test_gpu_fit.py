"""tools.gpu_fit on made-up measurements: it finds the constants that they were made with, and writes them and the pages."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gpu_day.row_file import read
from fastlstm.backends import cost_model, native
from tools import gpu_model as model_page
from tools import gpu_published
from tools.gpu_fit import __main__ as command
from tools.gpu_fit import committed, compare, constants, correctness, evaluation, measured, solve, sweep

if reason := native.module_unavailable():
    pytest.skip(reason, allow_module_level=True)

CARD = "NVIDIA H100 80GB HBM3"
TRUTH = {
    **{"l2_excess": 1.4, "shared_excess": 1.1, "product_excess": 2.0, "l2_clocks": 620.0, "kept_span_clocks": 75.0},
    **{"register_span_clocks": 48.0, "step_clocks": 500.0, "forward_cell_clocks": 700.0, "backward_cell_clocks": 950.0},
    **{"slot_clocks": 0.6, "barrier_clocks": 90.0, "partial_clocks": 30.0},
    **{"gather_clocks": 1000.0, "gather_kib_clocks": 20.0, "pass_clocks": 500.0, "grid_wait_us": 0.7, "launch_us": 8.0},
}
CALLS = [(H, B) for H in (128, 256, 512, 1024) for B in (1, 16, 64, 128)]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """A day on a GPU whose steps take what the model says with the constants TRUTH, give or take 1 %."""
    lib, random = cost_model.library(), np.random.default_rng(1)
    known = cost_model.known(CARD, 90, 132, 232448)
    gpu, built_in = (cost_model.description(replace(known, cost=cost)) for cost in (tuple(TRUTH.items()), ()))
    made = [
        {"t": 1.8e9, "stage": "env", "what": "native", "properties": [90, 132, 232448]},
        {"t": 1.8e9, "stage": "env", "what": "card", "gpu": CARD, "smi": {"driver_version": "580.1"}},
        {"t": 1.8e9, "stage": "env", "what": "versions", "torch": "2.11", "commit": "abcdef"},
    ]
    for math, (H, B), backward in ((m, c, b) for m in ("bf16", "tf32", "f32") for c in CALLS for b in (False, True)):
        # how many passes of lean hide behind a hand-over, the planner counts by its own constants
        fitting = lib.tilings(built_in, sweep.CODES[math], H, B, backward)
        kinds = [[c for c in fitting if (c.kernel == "lean") == lean] for lean in (True, False)]
        chosen = [c for kind in kinds for c in kind[:14] + kind[14 :: max(1, len(kind) // 20)]]
        for choice in chosen:
            us = lib.predict(gpu, sweep.CODES[math], choice.work).us
            tiling = {name: getattr(choice.t, name) for name in sweep.TILING}
            row = {"math": math, "H": H, "B": B, "backward": backward, "kernel": choice.kernel, "tiling": tiling}
            planner = choice is fitting[0]
            row |= {"us": us * random.normal(1, 0.01), "status": 0, "planner": planner, "predicted_us": 1.0}
            made.append({"t": 1.8e9, "stage": "sweep", **row, "work": choice.work.as_dict()})
    last = dict(made[-1])
    made += [{**last, "status": 1}, {**last, "us": None}, {**last, "slow": True, "us": 1e6}]
    made += [{**last, "tiling": {**last["tiling"], "groups": 99}}, {**last, "error": "x", "us": -1.0}]
    made.append({**last, "us": 0.5, "wrong": True})
    return made


@pytest.fixture
def raw_path(rows, tmp_path):
    path = tmp_path / "raw.jsonl"
    few = [row for row in rows if row["stage"] == "env" or (row["math"] == "bf16" and row["B"] in (16, 128))]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*few, *OTHERS]) + '{"cut off', encoding="utf-8")
    return path


SIZE = {"math": "bf16", "layout": "dense", "L": 1, "H": 512, "B": 16}
OTHERS = [
    {"stage": "module", **SIZE, "T": 128, "training": False, "graph": False, "seconds": {"torch": 2e-3, "cuda": 1e-3},
     "algorithm": "STANDARD"},
    {"stage": "module", **SIZE, "T": 128, "training": False, "graph": True, "seconds": {"torch": 1e-3, "cuda": 2e-3},
     "algorithm": "STANDARD"},
    {"stage": "module", **SIZE, "T": 128, "training": True, "graph": True, "seconds": {"torch": 1e-3}},
    {"stage": "cudnn", **SIZE, "mode": "inference", "graph": True, "us": 12.3, "algorithm": "STANDARD"},
    {"stage": "cudnn", **SIZE, "mode": "training", "graph": False, "us": 45.6, "algorithm": "STANDARD"},
    {"stage": "train", "math": "bf16", "H": 512, "B": 64, "us": {"input": 0.25, "forward_kernel": 1.75}},
    {"stage": "characters", "L": 2, "H": 128, "B": 50, "T": 50, "math": "f32", "autocast": "", "graph": False,
     "characters_per_second": {"torch": 1e6, "cuda": 3e6}},
    {"stage": "kernelbench", "problem": 35, "math": "tf32", "graph": False, "ms": {"torch": 30.5, "cuda": 20.25},
     "published_ms": 27.2},
    {"stage": "ubench", "item": "ubench", "hand_over_clocks": 812},
]  # fmt: skip
OTHERS = [{"t": 1.8e9, **row} for row in OTHERS]


def test_rows_that_cannot_be_used_are_left_out(rows):
    steps = sweep.steps(rows, sweep.device(rows))
    assert len(steps) == len([row for row in rows if row["stage"] == "sweep"]) - 6
    assert {step.device.shared_bytes for step in steps} == {232448}
    assert sum(step.planned for step in steps) == len(evaluation.by_call(steps)) <= 96


def test_the_fit_finds_the_constants_that_the_rows_were_made_with(rows):
    steps = sweep.steps(rows, sweep.device(rows))
    table, hbm = sweep.counts(steps)
    us, start = np.array([step.us for step in steps]), np.array([value for _, value in gpu_published.LEAN])
    assert list(sweep.constants()) == list(TRUTH) == [name for name, _ in gpu_published.LEAN]
    values = solve.fit(table, hbm, us, evaluation.weights(steps), start, sweep.least())
    for (name, expected), value in zip(TRUTH.items(), values, strict=True):
        tolerance = {"launch_us": 0.0, "barrier_clocks": 0.3, "shared_excess": 0.1}.get(name, 0.1)
        assert value == pytest.approx(expected, rel=tolerance), name
    off = sweep.predict(table, hbm, values) / us - 1
    assert np.abs(off).mean() < 0.0125
    assert evaluation.loss(steps, sweep.predict(table, hbm, values)).mean < 1.01


def test_constants_that_no_measured_row_uses_keep_their_values(rows):
    """As those of lean do where only the other kernels were measured."""
    steps = [step for step in sweep.steps(rows, sweep.device(rows)) if step.kernel != "lean"]
    table, hbm = sweep.counts(steps)
    us, start = np.array([step.us for step in steps]), np.array(list(sweep.constants().values()))
    values = solve.fit(table, hbm, us, evaluation.weights(steps), start, sweep.least())
    unused = [number for number, column in enumerate(table.T) if not column.any()]
    names = list(sweep.constants())
    assert {names[number] for number in unused} == {"gather_clocks", "gather_kib_clocks", "pass_clocks", "launch_us"}
    assert values[unused] == pytest.approx(start[unused], rel=1e-6)
    fitted, text = command.fitted(steps)
    assert [fitted[names[number]] for number in unused] == list(start[unused])
    for number in unused:
        assert f"| {names[number]} " in text


def test_counts_add_up_to_the_planners_prediction(rows):
    steps = sweep.steps(rows, sweep.device(rows))
    table, hbm = sweep.counts(steps)
    predicted = sweep.predict(table, hbm, np.array(list(sweep.constants().values())))
    assert predicted == pytest.approx([step.choice.us for step in steps])


def test_a_few_outliers_do_not_change_the_fit(rows):
    steps = sweep.steps(rows, sweep.device(rows))
    table, hbm = sweep.counts(steps)
    us, start = np.array([step.us for step in steps]), np.array(list(sweep.constants().values()))
    wild = us.copy()
    wild[::50] *= 10
    values = solve.fit(table, hbm, wild, evaluation.weights(steps), start)
    assert np.median(np.abs(sweep.predict(table, hbm, values) / us - 1)) < 0.05


def test_nnls_is_least_squares_without_negative_numbers():
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = random.normal(size=(30, 6)), random.normal(size=30)
        x = solve.nnls(a, b)
        gradient = a.T @ (a @ x - b)
        assert (x >= 0).all()
        assert np.abs(gradient[x > 0]).max(initial=0) < 1e-8  # what is positive is at its best
        assert gradient.min() > -1e-8  # what is zero would only get worse above it


def test_the_header_is_rewritten_with_new_constants_and_source(rows):
    text = constants.HEADER.read_text(encoding="utf-8")
    new = constants.written(text, {"l2_clocks": 1234.5, "slot_clocks": 0.0}, "3 steps")
    assert "X(l2_clocks, 1230, " in new
    assert "X(slot_clocks, 0, " in new
    assert "// From: 3 steps\n" in new
    assert len(new.splitlines()) == len(text.splitlines())
    with pytest.raises(ValueError, match="0 lines X"):
        constants.written(text, {"unknown": 1.0}, "")
    assert all(f"X({name}, " in text for name in sweep.constants())


def test_the_command_says_how_well_it_fits(raw_path, capsys):
    command.main([str(raw_path)])
    text = capsys.readouterr().out
    assert "16 calls on NVIDIA H100" in text
    for words in (
        "| l2_clocks ",
        "| cooperative  | forward ",
        "| single_block ",
        "after: 1.0",
        "times the fastest measured",
    ):
        assert words in text


def test_the_command_fails_without_sweep_rows_or_the_name_of_the_gpu(tmp_path):
    empty = tmp_path / "raw.jsonl"
    empty.write_text(json.dumps({"stage": "env", "t": 0, "gpu": CARD}) + "\n")
    with pytest.raises(SystemExit):
        command.main([str(empty)])
    empty.write_text(json.dumps({"stage": "env", "t": 0}) + "\n")
    with pytest.raises(ValueError, match="names the GPU"):
        command.main([str(empty)])


def _fitted(raw_path) -> dict[str, float]:
    """What the solver makes of the rows of a file, from the constants in force."""
    rows = read(raw_path)
    steps = sweep.steps(rows, sweep.device(rows))
    us, start = np.array([step.us for step in steps]), sweep.constants()
    before = np.array(list(start.values()))
    values = solve.fit(*sweep.counts(steps), us, evaluation.weights(steps), before, sweep.least())
    return dict(zip(start, map(float, values), strict=True))


def test_write_stores_rows_constants_and_pages(raw_path, tmp_path, monkeypatch):
    header = tmp_path / "cost_constants.h"
    header.write_text(constants.HEADER.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(constants, "HEADER", header)
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    monkeypatch.setattr(measured, "PAGE", tmp_path / "gpu-measured.md")
    monkeypatch.setattr(measured, "PLOTS", tmp_path / "gpu-measured")
    monkeypatch.setattr(model_page, "PAGE", tmp_path / "gpu-model.md")
    fitted = _fitted(raw_path)
    command.main([str(raw_path), "--write"])
    assert read(tmp_path / "gpu-h100-80gb-hbm3-raw.jsonl") == read(raw_path)
    assert f"steps measured on {CARD}" in header.read_text()
    values = dict(line.strip()[2:].split(", ")[:2] for line in header.read_text().splitlines() if line[:4] == "  X(")
    assert {name: float(value) for name, value in values.items()} == pytest.approx(fitted, rel=0.01)
    model = (tmp_path / "gpu-model.md").read_text()
    assert model == model_page.render(tuple((name, float(value)) for name, value in values.items()))
    assert f"## Predicted and measured on {CARD}" in model
    page = (tmp_path / "gpu-measured.md").read_text()
    assert page == measured.render()
    for words in (
        "driver 580.1", "torch 2.11", "commit abcdef", "date 2027-01-15", "1 / 2 (2.00)", "2 / 1 (0.50)", "12.30 / 45.60 eager",
        "| 0.25  |", "3,000,000", "| 20.25 | 30.50   | 27.2       | 29.4",
        '{"hand_over_clocks": 812}', "| STANDARD  | inference | graph ",
        *(f"](gpu-measured/h100-80gb-hbm3-{name}.svg)" for name in ("ratios", "steps", "model")),
    ):  # fmt: skip
        assert words in page, words
    before = header.read_text()
    command.main([str(tmp_path / "gpu-h100-80gb-hbm3-raw.jsonl"), "--write", "--keep-constants"])
    assert header.read_text() == before


def test_a_rehearsal_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    source = tmp_path / "raw.jsonl"
    source.write_text(json.dumps({"stage": "env", "t": 0, "gpu": CARD, "rehearsal": True}) + "\n")
    with pytest.raises(ValueError, match="of a rehearsal"):
        committed.by_card([source])
    assert committed.files() == {}


def test_merging_runs_keeps_each_stage_of_the_last_run_that_has_it():
    first = [
        {"stage": "env", "commit": "a1"}, {"stage": "cudnn", "us": 1}, {"stage": "stage", "name": "cudnn", "code": 0},
        {"stage": "sweep", "math": "bf16", "us": 2}, {"stage": "sweep", "math": "f32", "us": 3},
        {"stage": "stage", "name": "sweep-bf16", "code": 0}, {"stage": "stage", "name": "sweep-f32", "code": 0},
    ]  # fmt: skip
    last = [
        {"stage": "env", "commit": "b2"}, {"stage": "sweep", "math": "bf16", "us": 4},
        {"stage": "stage", "name": "sweep-bf16", "code": 1},
    ]  # fmt: skip
    merged = committed.merged([first, last])
    assert merged == [*first[:3], first[4], first[6], *last]
    assert committed.merged([merged, last]) == [
        *first[:3],
        first[4],
        first[6],
        last[0],
        *last,
    ]  # env rows tell of each run
    assert measured.commits(merged) == "b2 (cudnn of an earlier run at a1)"


def test_several_files_of_one_card_are_merged_into_one(raw_path, tmp_path, monkeypatch):
    monkeypatch.setattr(committed, "FOLDER", tmp_path)
    again = tmp_path / "again.jsonl"
    again.write_text(
        "".join(json.dumps(row) + "\n" for row in read(raw_path) if row["stage"] in ("env", "module")), encoding="utf-8"
    )
    (path,) = committed.keep(committed.by_card([raw_path, again]))
    rows = read(path)
    assert [row for row in rows if row["stage"] == "module"] == [row for row in read(again) if row["stage"] == "module"]
    assert [row for row in rows if row["stage"] == "sweep"] == [
        row for row in read(raw_path) if row["stage"] == "sweep"
    ]
    assert not list(tmp_path.glob("*.partial"))


RIGHT = [
    {"stage": "right", "kernel": "single_block", "math": "bf16", "case": "odd", "fine": True, "worst": 0.25},
    {"stage": "right", "kernel": "single_block", "math": "bf16", "case": "even", "fine": False, "worst": "nan"},
    {"stage": "right", "kernel": "cooperative", "math": "f32", "case": "odd", "fine": True, "worst": 0.5},
    {"stage": "right", "kernel": "cooperative", "math": "f32", "case": "even", "skipped": "too large"},
    {"stage": "right", "item": "step f32", "error": "RuntimeError: no"},
    {"stage": "graph", "same": True}, {"stage": "graph", "same": False}, {"stage": "graph", "same": None},
    {"stage": "triton", "case": "a", "fine": True, "wrong": "", "skipped": ""},
    {"stage": "triton", "case": "b", "fine": False, "wrong": "h: 3", "skipped": ""},
    {"stage": "triton", "case": "c", "fine": False, "wrong": "", "skipped": "does not fit"},
    {"stage": "module", "wrong": True}, {"stage": "module", "wrong": False},
    {"stage": "characters", "wrong": False},
    {"stage": "sweep", "wrong": False, "beside": "definition"},
    {"stage": "stage", "name": "right", "lost": "step f32", "code": -11},
]  # fmt: skip


def test_the_section_on_correctness_counts_wrong_results_and_errors():
    text = "\n".join(correctness.section(RIGHT))
    for words in (
        "| single_block | bf16 | 1 of 2 | inf   |", "| cooperative  | f32  | 1 of 1 | 0.50  |", "CUDA graphs: 1 of 3 replayed",
        "Triton: 1 of 2 cases right, 1 do not apply", "- modules beside nn.LSTM: 1 of 2 wrong",
        "- 1 times right: RuntimeError: no",
        "- character models (the first loss alone compared): 0 of 1 wrong", "- tilings one by one: 0 of 1 wrong",
        "- a process was lost in right at step f32: -11",
    ):  # fmt: skip
        assert words in text, words
    assert correctness.section([{"stage": "env"}]) == []


def test_the_committed_page_is_what_the_kept_rows_give():
    if committed.files():
        assert measured.PAGE.read_text(encoding="utf-8") == measured.render(), "run python -m tools.gpu_fit"
    else:
        assert not measured.PAGE.exists()
        assert compare.sections() == []


def test_stages_of_an_earlier_run_are_named_with_its_commit():
    env = [{"stage": "env", "commit": commit} for commit in ("a1", "b2")]
    assert measured.commits([env[0], {"stage": "sweep"}]) == "a1"
    rows = [env[0], {"stage": "cudnn"}, {"stage": "triton"}, {"stage": "stage"}, env[1], {"stage": "stage"}]
    assert measured.commits(rows) == "b2 (cudnn, triton of an earlier run at a1)"
