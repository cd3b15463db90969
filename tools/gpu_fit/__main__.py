"""The command `python -m tools.gpu_fit`: fits the cost model's constants to what was measured, and writes the pages.

python -m tools.gpu_fit raw.jsonl             show the constants, how well they predict, what picking by them loses
python -m tools.gpu_fit raw.jsonl --write     keep the rows, write constants and pages; then build and test again
python -m tools.gpu_fit raw.jsonl --write --keep-constants    rows and pages alone
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools import gpu_model as model_page
from tools.gpu_fit import committed, constants, evaluation, measured, solve, sweep
from tools.gpu_tables import markdown


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and say how well; write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "raw",
        nargs="+",
        type=Path,
        help="raw.jsonl of benchmarks.gpu_day; of a stage in several of one card, the last counts",
    )
    parser.add_argument("--write", action="store_true", help="constants, rows in benchmarks/results, pages in docs")
    parser.add_argument("--keep-constants", action="store_true", help="write all but constants")
    options = parser.parse_args(argv)
    cards = committed.by_card(options.raw)
    steps = [step for rows in cards.values() for step in sweep.steps(rows, sweep.device(rows))]
    if not steps:
        parser.error(
            "no row of the stage sweep can be used: right, status 0, us above 0, a tiling that the planner knows"
        )
    values, text = fitted(steps)
    print(text)
    if options.write:
        new = {} if options.keep_constants else values
        write(cards, new, source=f"{len(steps)} steps measured on {', '.join(_cards(steps))}, docs/gpu-measured.md")


def fitted(steps: Sequence[sweep.MeasuredStep]) -> tuple[dict[str, float], str]:
    """The constants, rounded as they are written, and what to say of them."""
    table, hbm = sweep.counts(steps)
    us, start = np.array([step.us for step in steps]), sweep.constants()
    before = np.array(list(start.values()))
    solution = solve.fit(table, hbm, us, evaluation.weights(steps), before, sweep.least())
    after = np.array([constants.rounded(value) for value in solution])
    old, new = (sweep.predict(table, hbm, values) for values in (before, after))
    uses = (table != 0).sum(0)
    lines = [(n, f"{a:.4g}", f"{b:.4g}", k) for n, a, b, k in zip(start, before, after, uses, strict=True)]
    parts = [f"{len(steps)} steps of {len(evaluation.by_call(steps))} calls on {', '.join(_cards(steps))}\n"]
    parts += [markdown(("constant", "before", "after", "steps that have it"), lines)]
    parts += ["Predicted over measured, median (middle 80 %):\n", evaluation.residuals(steps, before=old, after=new)]
    parts += [f"The planner's picks before: {evaluation.loss(steps, old)}", f"after: {evaluation.loss(steps, new)}"]
    return dict(zip(start, map(float, after), strict=True)), "\n".join(parts)


def _cards(steps: Sequence[sweep.MeasuredStep]) -> list[str]:
    return sorted({step.device.name for step in steps})


def write(cards: dict[str, list[dict]], values: dict[str, float], source: str) -> None:
    """Rows, constants and pages. docs/gpu-model.md is that of the new constants, which the built module does not have."""
    committed.keep(cards)
    if values:
        text = constants.HEADER.read_text(encoding="utf-8")
        constants.HEADER.write_text(constants.written(text, values, source), encoding="utf-8")
    cost = tuple(values.items())
    model_page.PAGE.write_text(model_page.render(cost), encoding="utf-8")
    measured.write_page(cost)
    print(
        f"wrote {constants.HEADER.name if values else 'no constants'}, {model_page.PAGE.name} and {measured.PAGE.name}"
    )
    if values:
        print("now build the package again and run python -m tools.gpu_resources, then the tests of tests/tools")


if __name__ == "__main__":
    main()
