"""At least 95 % of the lines of the CUDA kernels run in the simulation, by gcov."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import pytest

from tests.hostsim import build
from tools import hostsim_coverage as coverage

SOURCES = {path.name for path in (build.CSRC / "cuda").glob("*.cuh")}


def test_the_page_shows_the_covered_share_and_the_lines_not_reached():
    counts = {"a.cuh": Counter({1: 5, 2: 0, 3: 1}), "b.cuh": Counter({7: 2})}
    assert coverage.share_of(counts) == 0.75
    assert "| a.cuh | 3 | 66.7% | 2 |" in coverage.render(counts)


def test_the_committed_page_lists_every_kernel_file_and_reaches_the_floor():
    page = coverage.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (\w+\.cuh) \|", page, re.M)) == SOURCES
    assert float(re.search(r"\*\*([\d.]+)%\*\*", page)[1]) >= 100 * coverage.FLOOR


@pytest.mark.slow
def test_the_simulation_reaches_the_kernels_lines(tmp_path):
    if reason := build.unavailable():
        pytest.skip(reason)
    if shutil.which("gcov") is None:
        pytest.skip("gcov is not on the path; it comes with g++")
    counts = coverage.measure(tmp_path)
    assert set(counts) == SOURCES
    assert coverage.share_of(counts) >= coverage.FLOOR, coverage.render(counts)
