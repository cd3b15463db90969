"""A self-contained HTML page of a model: its predictions, its cells, its training.

`page` collects the data and puts it, with the style and the scripts of `templates/`, into one file. Text reaches the page
as JSON without markup characters and is inserted as text. A content security policy allows only the page's own script
and style, by their hashes, and no network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.cells import MIN_EFFECT, Findings, find_cells
from ..analysis.excerpt import Excerpt
from ..analysis.labels import labels
from ..analysis.tracing import pieces
from ..errors import CharLMError
from ..lm import CharLM
from ..training import jsonl, timeline
from .glyphs import glyph
from .page_data import CellTraces, fit_budget, pack

FOLDER = Path(__file__).parent / "templates"
SCRIPTS = ("data", "colour", "grid", "panel", "cells", "training", "main")
CELL_BUDGET = 13_000_000  # characters of the page for cell data
MAX_LOSS_POINTS, MAX_SAMPLES = 500, 60  # most points of the loss curve and samples of the timeline


def page(
    lm: CharLM,
    text: Excerpt,
    long: Excerpt | None = None,
    run: Path | None = None,
    title: str = "",
    color_blind: bool = False,
) -> str:
    """Render the page as HTML.

    Args:
        lm: the model
        text: to show
        long: a longer part of the same text to search cells on; None for `text`
        run: folder with log.jsonl and samples.jsonl; None for no training part
        title: of the page
        color_blind: start with colours for all kinds of colour vision

    Raises:
        CharLMError: jinja2 is not installed.
    """
    template = _template()
    scored = long or text
    findings = find_cells(lm, scored) if len(scored) >= 200 else None
    data = {
        "title": title,
        **_model(lm),
        **_predictions(lm, text),
        **_cells(lm, text, findings),
        "training": _training(run),
        "notes": [note for note in {text.note, scored.note} if note],
    }
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    script = "".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    html = template.render(
        title=timeline.visible(_valid_text(title)),
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
    """JSON without <, > and &, so that it cannot end its script element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _valid_text(text: str) -> str:
    """The text without lone surrogates (of file names that are not valid UTF-8)."""
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
    """Ids, the most likely next characters and their probabilities, entropy and surprise, packed."""
    parts = list(pieces(lm, text.ids, keep=()))

    def whole(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    surprise = whole("surprise")
    surprise[0] = -1  # JSON and the page have no NaN: the first character was not predicted
    surprise[text.unknown] = -1
    odd = {int(i): glyph(text.text[i], lm.vocab.bytes) for i in np.flatnonzero(text.unknown)}
    known = surprise[surprise >= 0]
    return {
        "text": _valid_text(text.name),
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


def _cells(lm: CharLM, text: Excerpt, findings: Findings | None) -> dict[str, Any]:
    """Traces of the cells, those with the best scores first, and the findings."""
    L, H = lm.config.num_layers, lm.config.hidden_size
    score = findings.score + 2 * findings.passes if findings else np.zeros((L, H))
    order = [divmod(int(k), H) for k in np.argsort(-score.ravel(), kind="stable")]
    traces = CellTraces.from_trace(pieces(lm, text.ids, keep=("c", "gates")), len(text))
    colours, rest = fit_budget(traces, order, CELL_BUDGET)
    if findings is None:
        return {"order": order, "colours": colours, "rest": rest, "found": None}
    known = {label.name: label for label in labels(text.text)}
    rows = findings.as_json()["rows"]
    for row in rows:
        row["example"] = _example(known[row["label"]].values)
    return {
        "order": order,
        "colours": colours,
        "rest": rest,
        "found": {
            "rows": rows,
            "characters": findings.characters,
            "passing": int(findings.passes.sum()),
            "rule": [(1 + MIN_EFFECT[True]) / 2, MIN_EFFECT[False]],
            "label": findings.label.tolist(),
            "score": np.round(findings.score, 4).tolist(),
            "passes": findings.passes.astype(int).tolist(),
            "saturation": np.round(findings.saturation, 3).tolist(),
        },
    }


def _example(values: np.ndarray) -> int:
    """A position at which the label is seen off and on: 40 characters before the longest of its first 40 runs."""
    on = values > np.median(values)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(int)))
    starts, ends = edges[::2][:40], edges[1::2][:40]
    return max(0, int(starts[np.argmax(np.minimum(ends - starts, 60))]) - 40) if len(starts) else 0


def _training(run: Path | None) -> dict[str, Any] | None:
    """Loss curves and samples of a run; None if its folder has no log."""
    log = run / "log.jsonl" if run else None
    if log is None or not log.is_file():
        return None
    rows = jsonl.read_rows(log)
    train = [[row["iteration"], row["train_nats"]] for row in rows if _number(row.get("train_nats"))]
    val = [[row["iteration"], row["val_nats"]] for row in rows if _number(row.get("val_nats"))]
    return {"train": _averaged(train), "val": val, "samples": _samples(run)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _averaged(points: list[list[float]]) -> list[list[float]]:
    """At most MAX_LOSS_POINTS points, each the mean of consecutive ones."""
    if len(points) <= MAX_LOSS_POINTS:
        return points
    return [np.mean(group, 0).round(4).tolist() for group in np.array_split(np.array(points), MAX_LOSS_POINTS)]


def _samples(run: Path) -> list[dict[str, Any]]:
    """The logged samples with their measures, or without if the corpus can no longer be read."""
    path = run / "samples.jsonl"
    if not path.is_file():
        return []
    try:
        samples = [
            {
                "iteration": point.iteration,
                "epoch": point.epoch,
                "text": timeline.visible(point.text),
                "facts": {label: str(getattr(point, name)) for name, label in timeline.MEASURES.items()},
            }
            for point in timeline.points(run)
        ]
    except CharLMError:
        samples = [{**row, "text": timeline.visible(row["text"]), "facts": {}} for row in jsonl.read_rows(path)]
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), MAX_SAMPLES)).round().astype(int))
    return [samples[i] for i in chosen]
