"""docs/gpu-model.md and docs/gpu-resources.md are what their scripts write, and the model fits what was published."""

from __future__ import annotations

import pytest

from fastlstm import gpu_model, native
from fastlstm.backends import cuda_plan
from tools import gpu_model as model_page
from tools import gpu_resources
from tools.gpu_tables import CODES, markdown


def test_the_model_page_is_what_the_script_writes():
    assert model_page.PAGE.read_text(encoding="utf-8") == model_page.render(), "run python -m tools.gpu_model"


def test_the_resources_page_is_what_the_script_writes():
    assert gpu_resources.PAGE.read_text(encoding="utf-8") == gpu_resources.render(), "run python -m tools.gpu_resources"


def test_published_points_are_reproduced_within_half():
    rows = gpu_model.residuals()
    assert [us for _, us, _, _ in rows] == [1.96, 4.76, 3.5, 3.1, 18.0]
    for what, published, mine, ratio in rows:
        assert ratio == pytest.approx(mine / published)
        assert 1 / 1.5 <= ratio <= 1.5, what


def test_the_page_says_what_it_is():
    page = model_page.render()
    assert "**These are predictions.**" in page
    assert len(model_page.constants()) == 9
    for name, value, _ in model_page.constants():
        assert getattr(gpu_model, name) == float(value)
    for device in ("A100", "H100", "RTX 4090"):
        assert page.count(f"| {device} ") >= 4 * 6


@pytest.mark.parametrize("math", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["T4", "A100", "H100", "RTX 4090"])
def test_the_planner_and_the_page_share_one_model(name, math):
    """plan.cpp counts as gpu_model.predict does, and nothing is predicted below the floor."""
    device = gpu_model.KNOWN[name]
    rate, itemsize = ("half", 2) if math == "bfloat16" else ("fma", 4)
    for H in model_page.UNITS:
        for B in model_page.BATCHES:
            for choice in cuda_plan.choices(native.load().plan, device, CODES[math], H=H, B=B):
                assert cuda_plan.predicted(choice, device, CODES[math]).us == pytest.approx(choice.us)
                assert choice.us > gpu_model.floor(device, H, B, itemsize, rate)


def test_tables_line_up():
    lines = markdown(("a", "bb"), [(1, 2), ("long", "x")]).splitlines()
    assert len({len(line) for line in lines}) == 1
