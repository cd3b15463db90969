"""Documents written by hand: their links lead to files and headings, and the source files they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Written by tools; tests/tools/test_pages.py holds them to their tools
GENERATED = ("gpu-measured.md", "gpu-model.md", "gpu-resources.md", "hostsim-coverage.md")
PAGES = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md")
    if path.name not in GENERATED
]
# A path below a folder of the tree, as `fastlstm/ops/reference.py`
SOURCES = re.compile(r"`((?:fastlstm|csrc|tests|tools|benchmarks|examples|docs)/[\w./-]+)`")
PLACEHOLDER = re.compile(r"\b(NAME|CARD|FILE|FOLDER)\b")  # `fastlstm/backends/NAME/`


def _headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_main_pages_are_checked() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "performance.md", "kernels.md"} <= {p.name for p in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in _headings(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_source_files_exist(page: Path) -> None:
    names = [name for name in SOURCES.findall(page.read_text(encoding="utf-8")) if not PLACEHOLDER.search(name)]
    assert not [name for name in names if not (ROOT / name).exists()]
