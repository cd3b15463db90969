"""Pages in a headless Chromium; also `python -m tests.charlm.page.chromium PAGE FOLDER [NAME]`, which takes their pictures."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
LAPTOP = {"width": 1366, "height": 768}
PATIENCE = 60_000  # ms: a busy machine is slow, not wrong


def why_not() -> str | None:
    """Why no page can be opened here, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install -c constraints.txt playwright"
    return None if CHROMIUM else "there is no chromium on the path: apt-get install chromium"


@contextmanager
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        instance = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield instance
        instance.close()


def opened(chrome, path: Path, theme: str = "light"):
    """A page from disk, ready; its list `complaints` grows with every console error and every request to a network."""
    context = chrome.new_context(color_scheme=theme, viewport=LAPTOP)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else page.complaints.append(r.url))
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    return page


def pictures(chrome, path: Path, folder: Path, name: str = "page") -> list[Path]:
    """Screenshots of each part, light and dark."""
    paths = []
    for theme in ("light", "dark"):
        page = opened(chrome, path, theme)
        for key, part in (("1", "predictions"), ("v", "text"), ("2", "cells"), ("3", "training")):
            page.keyboard.press(key)
            page.wait_for_timeout(250)
            paths.append(folder / f"{name}-{part}-{theme}.png")
            page.screenshot(path=paths[-1])
        page.context.close()
    return paths


if __name__ == "__main__":
    with browser() as one:
        print(*pictures(one, Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]), sep="\n")
