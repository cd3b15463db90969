"""docs/gpu-model.md and docs/gpu-resources.md are what their scripts write, and the model fits what was published."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.backends import cost_model
from fastlstm.backends.cuda import planner as cuda_planner
from tools import gpu_lean, gpu_published, gpu_resources, gpu_rounds
from tools import gpu_model as model_page
from tools.gpu_fit import committed, sweep
from tools.gpu_tables import CODES, markdown


def test_the_model_page_is_what_the_script_writes():
    assert model_page.PAGE.read_text(encoding="utf-8") == model_page.render(), "run python -m tools.gpu_model"


def test_the_resources_page_is_what_the_script_writes():
    assert gpu_resources.PAGE.read_text(encoding="utf-8") == gpu_resources.render(), "run python -m tools.gpu_resources"


def test_published_timings_are_predicted_within_a_factor_of_1_5():
    rows = gpu_published.residuals()
    assert [us for _, us, _, _ in rows] == [1.96, 4.76, 3.5, 3.1, 18.0]
    for what, published, predicted, ratio in rows:
        assert ratio == pytest.approx(predicted / published)
        assert 1 / 1.5 <= ratio <= 1.5, what


def test_measured_steps_are_predicted_within_a_factor_of_1_5():
    """Of every card whose rows are kept: the median of each kernel, direction and type."""
    for card, rows in committed.files().items():
        steps = sweep.steps(rows, sweep.device(rows))
        table, hbm = sweep.counts(steps)
        ratio = sweep.predict(table, hbm, np.array(list(sweep.constants().values()))) / [step.us for step in steps]
        groups = {(step.kernel, step.backward, step.math) for step in steps}
        assert len(groups) >= 8
        for group in groups:
            ratios = [r for r, s in zip(ratio, steps, strict=True) if (s.kernel, s.backward, s.math) == group]
            assert 1 / 1.5 <= np.median(ratios) <= 1.5, (card, group)


def test_the_model_page_says_that_it_predicts_and_lists_constants_and_devices():
    page = model_page.render()
    assert "**These are predictions**" in page
    for name, value, part, _ in cost_model.library().constants():
        assert f"| {name} " in page
        assert f" {value:.4g} " in page
        assert f" {part} " in page
    for device in ("A100", "H100", "RTX 4090"):
        assert page.count(f"| {device} ") >= 2 * 6


def test_the_model_page_can_be_rendered_with_other_constants():
    assert "| 123 " in model_page.render((("l2_clocks", 123.0),))


@pytest.mark.parametrize("math", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["T4", "A100", "H100", "RTX 4090"])
def test_nothing_is_predicted_below_the_floor(name, math):
    device = cost_model.KNOWN[name]
    for H in model_page.UNITS:
        for B in model_page.BATCHES:
            for choice in cuda_planner.choices(cost_model.library(), device, CODES[math], H=H, B=B):
                assert choice.us > model_page.floor(device, H, B, CODES[math])


def test_picks_have_at_most_twice_the_fewest_rounds_or_a_reason():
    page, beyond = model_page.PAGE.read_text(encoding="utf-8"), []
    for row in gpu_rounds.rows(cost_model.KNOWN["H100"]):
        if row.within:
            continue
        beyond.append(row)
        assert row.pick.us <= row.fewest.us
        assert row.reason in page
    assert all(
        row.H == 128 and row.fewest.kernel == "single_block" for row in beyond
    )  # no rounds, but few warps for its work


def test_the_columns_of_a_markdown_table_are_aligned():
    lines = markdown(("a", "bb"), [(1, 2), ("long", "x")]).splitlines()
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("math", gpu_lean.TYPES)
def test_an_h200_is_predicted_as_an_h100_is(math):
    """So one line of the page stands for both."""
    for H in gpu_lean.UNITS:
        for B in gpu_lean.BATCHES:
            both = [gpu_lean.choices(cost_model.KNOWN[name], math, H, B) for name in ("H100", "H200")]
            assert [(c.kernel, f"{c.us:.2f}") for c in both[0]] == [(c.kernel, f"{c.us:.2f}") for c in both[1]], (H, B)


@pytest.mark.parametrize("math", gpu_lean.TYPES)
def test_no_step_is_predicted_to_be_slower_with_lean_than_without(math):
    for _, name in gpu_lean.DEVICES:
        for H in gpu_lean.UNITS:
            for B in gpu_lean.BATCHES:
                device = cost_model.KNOWN[name]
                pairs = zip(
                    gpu_lean.choices(device, math, H, B),
                    gpu_lean.choices(device, math, H, B, gpu_lean.BEFORE),
                    strict=True,
                )
                for after, before in pairs:
                    assert before.kernel != "lean"
                    assert after.us <= before.us
                    assert after.us >= model_page.floor(device, H, B, CODES[math]) or after.kernel == "per_step"


def test_predictions_are_called_so_where_measured_times_stand_beside_them():
    page = model_page.PAGE.read_text(encoding="utf-8")
    headings = [line for line in page.splitlines() if line.startswith("## ") and "nn.LSTM" in line]
    assert len(headings) == 2
    assert all("Predicted" in line and "measured" in line for line in headings)
    assert "lean has never run on a GPU" in page
    assert "12.21 (bf16), 12.02 (f16)" in page  # bf16 H 512 B 1, as docs/gpu-measured.md has it
