"""The page in a headless Chromium: opened from disk, read, used by mouse and keyboard, looked at."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from fastlstm.charlm import trace
from fastlstm.charlm.analysis import excerpt
from fastlstm.charlm.page import visualize
from fastlstm.charlm.page.glyphs import glyph
from tests.charlm.page import chromium
from tests.charlm.page.test_visualize import HOSTILE, SYMBOLS, TEXT
from tests.charlm.planted import untrained, with_quote_cell

pytestmark = pytest.mark.skipif(chromium.why_not() is not None, reason=str(chromium.why_not()))


@pytest.fixture(scope="module")
def chrome():
    with chromium.browser() as instance:
        yield instance


@pytest.fixture(scope="module")
def lm():
    model = with_quote_cell(SYMBOLS, 0, 3)
    with torch.no_grad():
        model.model.out.weight.mul_(30)  # probabilities from 0 to 1
    return model


@pytest.fixture(scope="module")
def path(lm, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "a page.html"
    log = [
        {"iteration": k, "train_nats": 1 + 9 / k, **({"val_nats": 1.2 + 9 / k} if k % 10 == 0 else {})}
        for k in range(1, 60)
    ]
    samples = [{"iteration": k, "epoch": k / 30, "text": HOSTILE + TEXT[:k]} for k in range(1, 60, 20)]
    for name, rows in (("log", log), ("samples", samples)):
        file.with_name(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = visualize.page(lm, excerpt.of_text(lm, TEXT, "prose"), run=file.parent, title="a page")
    file.write_text(html, encoding="utf-8")
    return file


@pytest.fixture
def page(chrome, path):
    loaded = chromium.opened(chrome, path)
    yield loaded
    assert loaded.complaints == []
    loaded.context.close()


def at(page) -> int:
    return int(re.search(r"character ([\d,]+)", page.locator("#where").inner_text())[1].replace(",", ""))


def value(page, name: str) -> float:
    return float(page.locator(f"#{name}").inner_text().split()[0].replace("−", "-"))


def cell_name(page) -> str:
    return page.locator("#cell-name").inner_text()


def waits(page, name: str) -> None:
    page.wait_for_function("name => document.getElementById('cell-name').textContent === name", arg=f"Cell {name}")


def go_to(page, t: int) -> None:
    page.evaluate("t => { S.pinned = true; select(t, true) }", t)


def test_probabilities_are_the_model_s_softmax(page, lm):
    ids = torch.from_numpy(lm.vocab.encode(TEXT).astype(np.int64))[:, None]
    with torch.no_grad():
        p = torch.softmax(lm.model(ids)[0][:, 0].double(), -1).numpy()
    for t in (0, 1, 77, 1234, len(TEXT) - 1):
        go_to(page, t)
        rows = page.locator("#next li").all()
        shown = [(row.locator(".tile").inner_text(), row.locator("output").inner_text()) for row in rows]
        order = np.argsort(-p[t], kind="stable")[:5]
        for (drawn, text), k in zip(shown, order, strict=False):
            assert float(text.replace("−", "-")) == pytest.approx(p[t, k], abs=2e-6)
            assert p[t, [glyph(s, False)[0] for s in SYMBOLS].index(drawn)] == pytest.approx(p[t, k], abs=2e-6)
        assert float(shown[5][1].replace("−", "-")) == pytest.approx(1 - p[t, order].sum(), abs=5e-6)
        assert value(page, "entropy") == pytest.approx(-(p[t] * np.log(p[t])).sum(), abs=1e-3)
        if t:
            assert value(page, "surprise") == pytest.approx(-np.log(p[t - 1, ids[t, 0]]), abs=1e-3)
    go_to(page, 0)
    assert page.locator("#surprise").inner_text() == "not predicted"


def test_the_mouse_chooses_cells_and_positions(page, lm):
    kept = trace(lm, TEXT)
    assert cell_name(page) == "Cell 0:3"  # the planted one
    page.select_option("#layer", "1")
    waits(page, "1:3")
    page.click("#unit-next")
    waits(page, "1:4")
    page.fill("#unit", "17")
    page.keyboard.press("Enter")
    waits(page, "1:17")
    for t in (5, 600):
        go_to(page, t)
        assert value(page, "cell-tanh") == pytest.approx(np.tanh(kept.c[1, t, 17]), abs=0.01)
        assert value(page, "cell-c") == pytest.approx(kept.c[1, t, 17], abs=0.02)
        assert value(page, "cell-h") == pytest.approx(kept.h[1, t, 17], abs=0.03)
        gates = [float(v.replace("−", "-")) for v in page.locator(".gate output").all_inner_texts()]
        np.testing.assert_allclose(gates, kept.gates[1, t, :, 17], atol=0.04)
    page.select_option("#found", "0")
    waits(page, "0:3")
    page.locator("[data-t]").nth(40).hover()
    page.locator("[data-t]").nth(40).click()
    assert at(page) == int(page.locator("[data-t]").nth(40).get_attribute("data-t"))
    page.click("#tab-cells")
    card = page.locator(".card").nth(5)
    chosen = card.get_attribute("data-cell")
    card.click()
    waits(page, chosen)
    assert page.locator("#predictions").is_visible()
    assert chosen != "0:3"


def test_keys_choose_cells_positions_and_parts(page):
    page.locator("#grid").focus()
    go_to(page, 100)
    for key, to in (("ArrowRight", 101), ("ArrowLeft", 100), ("Control+Home", 0), ("Control+End", len(TEXT) - 1)):
        page.keyboard.press(key)
        assert at(page) == to
    page.keyboard.press("ArrowUp")
    assert at(page) < len(TEXT) - 1
    for key, name in (("]", "0:4"), ("[", "0:3"), ("[", "0:2"), ("l", "1:2"), ("l", "0:2"), ("n", "0:3")):
        page.keyboard.press(key)
        waits(page, name)
    page.keyboard.press("v")
    assert page.locator(".row.text").count() > 0
    page.keyboard.press("v")
    assert page.locator(".row.text").count() == 0
    for key, part in (("2", "cells"), ("3", "training"), ("1", "predictions")):
        page.keyboard.press(key)
        assert page.locator(f"#{part}").is_visible()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    for _ in range(40):  # everything can be reached with the tab key
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "by":
            break
    else:
        pytest.fail("the tab key does not reach the choice of colours")


def backs(page, selector: str) -> list[list[int]]:
    rows = page.eval_on_selector_all(selector, "all => all.map(e => getComputedStyle(e).backgroundColor)")
    return [[int(v) for v in re.findall(r"\d+", row)] for row in rows]


@pytest.mark.parametrize("scale", ["article", "safe"])
def test_colours_follow_cell_and_probability(page, lm, scale):
    """Blue where the cell is negative, green or orange where positive; white to red, or violet, by probability."""
    page.select_option("#scale", scale)
    go_to(page, 0)
    page.evaluate("document.getElementById('grid').scrollTop = 0")
    page.wait_for_timeout(300)
    kept = trace(lm, TEXT)
    where = [int(t) for t in page.eval_on_selector_all("[data-t]", "all => all.map(e => e.dataset.t)")]
    for t, (r, g, b) in zip(where, backs(page, "[data-t] > b"), strict=True):
        c = np.tanh(kept.c[0, t, 3])
        if c < -0.5:
            assert b > r, t
        elif c > 0.5:
            assert (g > b and g > r) if scale == "article" else (r > g > b), t
        elif abs(c) < 0.01:
            assert min(r, g, b) > 240
    chances = kept.top_p[where].ravel()
    light = np.array(backs(page, "[data-t] > i")).sum(1)
    assert np.corrcoef(chances, light)[0, 1] < -0.9


def test_hostile_text_stays_text_in_the_browser(chrome, tmp_path):
    lm = untrained(SYMBOLS)
    text = HOSTILE * 3
    file = tmp_path / "hostile.html"
    file.write_text(visualize.page(lm, excerpt.of_text(lm, text, HOSTILE[:60]), title=HOSTILE), encoding="utf-8")
    page = chromium.opened(chrome, file)
    assert page.evaluate("window.hit") is None
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    for t in range(0, len(text), 7):
        go_to(page, t)
        column = page.locator(f'[data-t="{t}"] > b')
        expected = glyph(text[t], False)[0].replace("␣", "\u00a0")
        assert column.evaluate("e => e.textContent") == expected
    page.evaluate("document.getElementById('grid').scrollTop = 0")
    page.wait_for_timeout(300)
    boxes = page.eval_on_selector_all(
        ".row", "rows => rows.map(r => [...r.children].map(c => c.getBoundingClientRect().x))"
    )
    for row in boxes:
        assert row == sorted(row)  # marks of direction turn nothing round
        assert len(set(np.diff(row).round(1))) <= 1  # and nothing is wider than its square
    assert page.complaints == []
    page.context.close()


def test_a_line_of_100000_characters_can_be_read(chrome, tmp_path):
    line = (TEXT.replace("\n", " ") * 26)[:100_000]
    lm = untrained(SYMBOLS, 4, 1)
    file = tmp_path / "long.html"
    html = visualize.page(lm, excerpt.of_text(lm, line), excerpt.of_text(lm, line[:5000]), title="long")
    file.write_text(html, encoding="utf-8")
    page = chromium.opened(chrome, file)
    assert page.locator("[data-t]").count() < 3000
    page.locator("#grid").focus()
    page.keyboard.press("Control+End")
    assert at(page) == 99_999
    assert page.locator('[data-t="99999"]').is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []
    page.context.close()


def test_screenshots_are_light_and_dark(chrome, path, tmp_path):
    """Light is light, dark is dark, and there is something to see."""
    from matplotlib.image import imread

    for picture in chromium.pictures(chrome, path, tmp_path):
        pixels = imread(picture)[..., :3]
        assert pixels.shape == (768, 1366, 3)
        if "light" in picture.name:
            assert np.median(pixels) > 0.85
        else:
            assert np.median(pixels) < 0.2
        assert pixels.std() > 0.05, picture.name


def test_no_label_of_the_loss_curves_is_cut_off(page):
    """Both curves end at the right edge of the chart, where their labels begin; losses of two digits and three places."""
    page.keyboard.press("3")
    boxes = page.eval_on_selector_all(
        "#loss svg text", "all => all.map(e => [e.textContent, e.getBBox().x, e.getBBox().x + e.getBBox().width])"
    )
    labels = [name for name, *_ in boxes if name.startswith(("train ", "val "))]
    assert len(labels) == 2
    width = page.eval_on_selector("#loss svg", "e => e.viewBox.baseVal.width")
    for name, left, right in boxes:
        assert 0 <= left < right <= width, name


def test_the_timeline_shows_losses_and_samples(page):
    page.keyboard.press("3")
    assert page.locator("#loss polyline").count() == 2
    assert "iteration 41" in page.locator("#growth").inner_text()
    page.locator("#sample").focus()
    page.keyboard.press("ArrowLeft")
    assert "iteration 21" in page.locator("#growth").inner_text()
    assert page.locator("#growth pre").evaluate("e => e.textContent").startswith("</script><script>")
    assert page.evaluate("window.hit") is None
