"""At least 95 % of the lines of the CUDA kernels run in the simulation, by gcov."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import pytest

from tests.hostsim import build
from tools import hostsim_coverage as coverage

SOURCES = {path.name for path in (build.CSRC / "cuda").glob("*.cuh")}


def test_the_share_and_the_lines_not_reached():
    found = {"a.cuh": Counter({1: 5, 2: 0, 3: 1}), "b.cuh": Counter({7: 2})}
    assert coverage.share_of(found) == 0.75
    assert "| a.cuh | 3 | 66.7% | 2 |" in coverage.render(found)


def test_the_committed_page_is_of_these_files():
    page = coverage.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (\w+\.cuh) \|", page, re.M)) == SOURCES
    assert float(re.search(r"\*\*([\d.]+)%\*\*", page)[1]) >= 100 * coverage.FLOOR


@pytest.mark.slow
def test_the_simulation_reaches_the_kernels_lines(tmp_path):
    if reason := build.unavailable():
        pytest.skip(reason)
    if shutil.which("gcov") is None:
        pytest.skip("gcov is not on the path; it comes with g++")
    found = coverage.measure(tmp_path)
    assert set(found) == SOURCES
    assert coverage.share_of(found) >= coverage.FLOOR, coverage.render(found)
