"""The samples that a run logged, measured, and an HTML page of them.

The measures follow the order in which a model learns, as Karpathy's article describes it: spaces, quotes and full
stops, short words, spelling.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from .. import checkpoint
from ..errors import CharLMError
from ..lm import CharLM
from . import jsonl

FEW = 10  # a share of fewer things is shown in numbers
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Share:
    """`part` of `whole` things; shown as a percentage, or in numbers where it is a share of few."""

    part: int
    whole: int

    def __str__(self) -> str:
        if self.whole == 0:
            return "–"
        return f"{self.part / self.whole:.0%}" if self.whole >= FEW else f"{self.part} of {self.whole}"

    def __add__(self, other: Share) -> Share:
        return Share(self.part + other.part, self.whole + other.whole)


@dataclass(frozen=True)
class SamplePoint:
    """One sample and its measures.

    Attributes:
        iteration, epoch: when it was sampled
        nats: training loss then
        text: of the sample
        known: share of words that occur in the corpus
        short: the same for words of at most three letters
        doubled: share of spaces that follow a space
        quotes: share of quotation marks that are paired in their paragraph
    """

    iteration: int
    epoch: float
    nats: float | None
    text: str
    known: Share
    short: Share
    doubled: Share
    quotes: Share


MEASURES = {"known": "known words", "short": "known short words", "doubled": "double spaces", "quotes": "paired quotes"}


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def measure(text: str, vocabulary: set[str]) -> dict[str, Share]:
    """The measures of a text. vocabulary: the words of the corpus."""
    inner = words(text)[1:-1]  # the ends may be cut
    short = [word for word in inner if len(word) <= 3]
    marks = [paragraph.count('"') for paragraph in re.split(r"\n\s*\n", text)]

    def share(group: list[str]) -> Share:
        return Share(sum(word in vocabulary for word in group), len(group))

    return {
        "known": share(inner),
        "short": share(short),
        "doubled": Share(len(re.findall("(?<= ) ", text)), text.count(" ")),
        "quotes": Share(sum(n - n % 2 for n in marks), sum(marks)),
    }


def points(folder: Path) -> list[SamplePoint]:
    """The samples of a run with their measures. Raises CharLMError if there are none."""
    if not folder.is_dir():
        raise CharLMError(f"there is no run {folder}: expected the folder of a run that kept samples")
    path = folder / "samples.jsonl"
    rows = jsonl.read_rows(path) if path.is_file() else []
    if not rows:
        raise CharLMError(f"{folder} has no samples: train with --sample-every N to keep some")
    lm = CharLM.load(checkpoint.locate(str(folder)))
    vocabulary = set(words(lm.vocab.to_text(lm.corpus().text())))
    losses = _losses(folder)
    return [
        SamplePoint(
            row["iteration"], row["epoch"], losses(row["iteration"]), row["text"], **measure(row["text"], vocabulary)
        )
        for row in rows
    ]


def _losses(folder: Path) -> Any:
    """A function from an iteration to the last logged training loss, in nats."""
    path = folder / "log.jsonl"
    log = [(row["iteration"], row["train_nats"]) for row in jsonl.read_rows(path)] if path.is_file() else []

    def at(iteration: int) -> float | None:
        before = [nats for when, nats in log if when <= iteration]
        return before[-1] if before else None

    return at


def pooled(shares: list[Share]) -> list[Share]:
    """Each share with those of as many samples before and after it as are needed to count FEW things."""
    out = []
    for i, share in enumerate(shares):
        for reach in range(1, len(shares)):
            if share.whole >= FEW:
                break
            around = (shares[j] for j in (i - reach, i + reach) if 0 <= j < len(shares))
            share = sum(around, share)
        out.append(share)
    return out


_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; --faint: #8888; --line: #2a7; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem } h2 { font-size: 1rem; margin: 2rem 0 .3rem; font-weight: 600 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .8rem 1rem; border-radius: .4rem;
  max-height: 22rem; overflow: auto; margin: .3rem 0; unicode-bidi: isolate }
.m { color: var(--faint); color: GrayText; font-variant-numeric: tabular-nums; font-size: .9rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem }
svg { width: 100%; height: 5rem; overflow: visible } polyline { fill: none; stroke: var(--line); stroke-width: 2 }
figure { margin: 0 } figcaption { font-size: .9rem }
</style>
<h1>$title</h1>
<div class="charts">$charts</div>
$samples
</html>
""")


def _chart(name: str, shares: list[Share]) -> str:
    """A line chart as SVG, 0 to 100 %, one step a sample; empty where there is nothing to count."""
    seen = [(i, share) for i, share in enumerate(pooled(shares)) if share.whole]
    if not seen:
        return ""
    width = max(1, seen[-1][0])
    line = " ".join(f"{100 * i / width:.1f},{40 - 38 * share.part / share.whole:.1f}" for i, share in seen)
    return (
        f'<figure><figcaption>{name}: <b>{seen[-1][1]}</b></figcaption><svg viewBox="0 0 100 42" '
        f'preserveAspectRatio="none" role="img" aria-label="{name} over training">'
        f'<polyline vector-effect="non-scaling-stroke" points="{line}"/></svg></figure>'
    )


def page(title: str, samples: list[SamplePoint]) -> str:
    """A self-contained HTML page: charts of the measures, and every sample."""
    charts = "".join(_chart(label, [getattr(point, name) for point in samples]) for name, label in MEASURES.items())
    sections = []
    for point in samples:
        facts = [f"{label} {getattr(point, name)}" for name, label in MEASURES.items()]
        if point.nats is not None:
            facts.insert(0, f"loss {point.nats:.3f} nats")
        sections.append(
            f"<h2>iteration {point.iteration:,} · epoch {point.epoch:.2f}</h2>"
            f'<div class="m">{" · ".join(facts)}</div><pre>{html.escape(visible(point.text))}</pre>'
        )
    return _PAGE.substitute(title=html.escape(title), charts=charts, samples="\n".join(sections))


def visible(text: str) -> str:
    """The text with control characters replaced by control pictures (U+2400 …), so that they have no effect."""
    return "".join(
        chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else "\u2421" if c == "\x7f" else c for c in text
    )
