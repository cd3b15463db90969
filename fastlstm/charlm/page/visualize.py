"""One page that shows what a model does: its predictions, its cells, its training. No network; opens from disk.

`page` gathers the data, `templates/` is what it is shown with: page.html.j2, page.css and the scripts, all put into the
one file. The text is data: it reaches the page as JSON, in which no markup can be written, and is drawn as text; a
content security policy allows no script or style but the page's own, by their hashes, and no network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.cells import FLOOR, Findings, find_cells
from ..analysis.excerpt import Excerpt
from ..analysis.labels import labels
from ..analysis.tracing import pieces
from ..errors import CharLMError
from ..lm import CharLM
from ..training import jsonl, timeline
from .glyphs import glyph
from .page_data import CellTraces, pack, within

FOLDER = Path(__file__).parent / "templates"
SCRIPTS = ("data", "colour", "grid", "panel", "cells", "training", "main")
BUDGET = 13_000_000  # characters of the page for cells
POINTS, SAMPLES = 500, 60  # most points of the loss curve and samples of the timeline


def page(
    lm: CharLM,
    text: Excerpt,
    long: Excerpt | None = None,
    run: Path | None = None,
    title: str = "",
    color_blind: bool = False,
) -> str:
    """The page, as HTML.

    text: what it shows; long: a longer part of the same text to score cells on, text itself by default; run: a folder
    with log.jsonl and samples.jsonl; color_blind: start with the colours that all can tell apart.
    Raises CharLMError where jinja2 is missing.
    """
    template = _template()
    scored = long or text
    found = find_cells(lm, scored) if len(scored) >= 200 else None
    data = {
        "title": title,
        **_model(lm),
        **_predictions(lm, text),
        **_cells(lm, text, found),
        "training": _training(run),
        "notes": [note for note in {text.note, scored.note} if note],
    }
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    script = "".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    html = template.render(
        title=timeline.visible(_clean(title)),
        scales={"article": "the article’s", "safe": "colour-blind safe"},
        scale="safe" if color_blind else "article",
        style=style,
        script=script,
        data=as_script(data),
        hashes=[_hash(style), _hash(script)],
    )
    return html


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise CharLMError(
            "a page is made with jinja2, which is not installed: pip install 'fastlstm[visualize]'"
        ) from error
    loader = jinja2.FileSystemLoader(FOLDER)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "page.html.j2"
    )


def as_script(data: Any) -> str:
    """JSON in which nothing can end a script element or start a tag."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _clean(text: str) -> str:
    """A file's name may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode()


def _model(lm: CharLM) -> dict[str, Any]:
    config, metrics = lm.config, lm.saved.metrics
    return {
        "layers": config.num_layers,
        "units": config.hidden_size,
        "trained": {k: metrics.get(k) for k in ("iteration", "epoch", "val_nats", "best_nats")},
        "symbols": [glyph(symbol, lm.vocab.bytes) for symbol in lm.vocab.symbols],
    }


def _predictions(lm: CharLM, text: Excerpt) -> dict[str, Any]:
    """Ids, the five most likely next characters and their exact probabilities, entropy and surprise."""
    parts = list(pieces(lm, text.ids, keep=()))

    def whole(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    surprise = whole("surprise")
    surprise[0] = -1  # JSON and the page have no NaN: the first character was not predicted
    surprise[text.unknown] = -1
    odd = {int(i): glyph(text.text[i], lm.vocab.bytes) for i in np.flatnonzero(text.unknown)}
    known = surprise[surprise >= 0]
    return {
        "text": _clean(text.name),
        "unit": lm.vocab.unit + "s",
        "n": len(text),
        "k": parts[0].top.shape[1],
        "mean": float(known.mean()) if len(known) else 0.0,
        "ids": pack(text.ids.astype(np.uint32)),
        "top": pack(whole("top").astype(np.uint32)),
        "p": pack(whole("top_p")),
        "facts": pack(whole("entropy"), surprise.astype(np.float32)),
        "unknown": odd,
    }


def _cells(lm: CharLM, text: Excerpt, found: Findings | None) -> dict[str, Any]:
    """Every cell's traces, best explained first, and what was found of them."""
    L, H = lm.config.num_layers, lm.config.hidden_size
    score = found.score + 2 * found.passes if found else np.zeros((L, H))
    order = [divmod(int(k), H) for k in np.argsort(-score.ravel(), kind="stable")]
    traces = CellTraces.of(pieces(lm, text.ids, keep=("c", "gates")), len(text))
    colours, rest = within(traces, order, BUDGET)
    if found is None:
        return {"order": order, "colours": colours, "rest": rest, "found": None}
    known = {label.name: label for label in labels(text.text)}
    rows = found.as_json()["rows"]
    for row in rows:
        row["example"] = _example(known[row["label"]].values)
    return {
        "order": order,
        "colours": colours,
        "rest": rest,
        "found": {
            "rows": rows,
            "characters": found.characters,
            "passing": int(found.passes.sum()),
            "rule": [(1 + FLOOR[True]) / 2, FLOOR[False]],
            "label": found.label.tolist(),
            "score": np.round(found.score, 4).tolist(),
            "passes": found.passes.astype(int).tolist(),
            "saturation": np.round(found.saturation, 3).tolist(),
        },
    }


def _example(values: np.ndarray) -> int:
    """Where in the text a label may be seen both on and off: a little before its longest run among the first."""
    on = values > np.median(values)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(int)))
    starts, ends = edges[::2][:40], edges[1::2][:40]
    return max(0, int(starts[np.argmax(np.minimum(ends - starts, 60))]) - 40) if len(starts) else 0


def _training(run: Path | None) -> dict[str, Any] | None:
    """The loss curves and the samples of a run, or None where its folder has no log."""
    log = run / "log.jsonl" if run else None
    if log is None or not log.is_file():
        return None
    rows = jsonl.rows(log)
    train = [[row["iteration"], row["train_nats"]] for row in rows if _number(row.get("train_nats"))]
    val = [[row["iteration"], row["val_nats"]] for row in rows if _number(row.get("val_nats"))]
    return {"train": _thinned(train), "val": val, "samples": _samples(run)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most POINTS points, each the mean of its neighbours."""
    if len(points) <= POINTS:
        return points
    return [np.mean(group, 0).round(4).tolist() for group in np.array_split(np.array(points), POINTS)]


def _samples(run: Path) -> list[dict[str, Any]]:
    """The kept samples with what a reader would notice, or without where the corpus is gone."""
    path = run / "samples.jsonl"
    if not path.is_file():
        return []
    try:
        found = [
            {
                "iteration": point.iteration,
                "epoch": point.epoch,
                "text": timeline.visible(point.text),
                "facts": {label: getattr(point, name) for name, label in timeline.MEASURES.items()},
            }
            for point in timeline.points(run)
        ]
    except CharLMError:
        found = [{**row, "text": timeline.visible(row["text"]), "facts": {}} for row in jsonl.rows(path)]
    chosen = np.unique(np.linspace(0, len(found) - 1, min(len(found), SAMPLES)).round().astype(int))
    return [found[i] for i in chosen]
