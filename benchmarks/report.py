"""Results as one CSV file, a Markdown page and plots: `python -m benchmarks.report FILE... [--out FOLDER] [--readme]`.

FILE: JSON of the suite (pytest-benchmark's) or CSV of this schema (benchmarks/schema.py); a case in a later file takes
the place of the same case before it. `--out` writes results.csv, results.md and SVG files there. `--readme` takes one
committed CSV, draws ratios.svg beside it and rewrites the block between the markers in README.md from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import plots, schema
from benchmarks.schema import Row
from benchmarks.speed import speed
from benchmarks.targets import TARGETS

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
SUITE_CONTENDERS = ("cpu", "cuda", "triton", "dispatched", "torch", "charlm", "recompute", "fastlstm", "alone")


def main(argv: Sequence[str] | None = None) -> None:
    """Read, then write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="folder for results.csv, results.md and the plots")
    parser.add_argument("--readme", action="store_true", help="rewrite the block in README.md")
    options = parser.parse_args(argv)
    rows = merged(schema.read(path) for path in options.files)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        schema.write_csv(options.out / "results.csv", rows)
        pictures = plots.write(options.out, rows)
        (options.out / "results.md").write_text(page(rows, [path.name for path in pictures]))
        print(f"wrote results.csv, results.md and {len(pictures)} plots to {options.out}")
    if options.readme:
        _rewrite_readme(options.files, rows)
    if not options.out and not options.readme:
        print(page(rows, []), end="")


def merged(files: Iterable[list[Row]]) -> list[Row]:
    """Return the rows of all files; a case of a later file replaces the same case."""
    cases: dict[str, list[Row]] = {}
    for rows in files:
        cases |= {name: [row for row in rows if row.case == name] for name in dict.fromkeys(row.case for row in rows)}
    return [row for rows in cases.values() for row in rows]


def page(rows: Sequence[Row], pictures: Sequence[str]) -> str:
    """The Markdown page: summary, plots, every case, competitors, who was left out and why, machine."""
    parts = ["# Results", machine_line(rows), "## Summary", summary(rows)]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["## Every case", every_case(rows)]
    parts += ["## Other LSTMs", competitors(rows)] if any(row.contender not in SUITE_CONTENDERS for row in rows) else []
    return "\n\n".join(part for part in parts if part) + "\n"


def machine_line(rows: Sequence[Row]) -> str:
    """Where the rows come from; every value that occurs, should files have been merged."""
    names = ("cpu", "cores", "threads", "isa", "torch_isa", "onednn_isa", "gpu", "python", "torch", "fastlstm")
    names = (*names, "onnxruntime", "jax", "commit", "date")
    by_name = {name: list(dict.fromkeys(str(getattr(row, name)) for row in rows)) for name in names}
    return ", ".join(
        f"{name.replace('_', ' ')} {' / '.join(values)}" for name, values in by_name.items() if any(values)
    )


def summary(rows: Sequence[Row]) -> str:
    """A line for every row of the table of targets: times, and how many times as fast as nn.LSTM, with the spread."""
    lines, done = [["case", "shapes", "nn.LSTM", "fastlstm", "times as fast as nn.LSTM"]], set()
    cases = list(dict.fromkeys(row.case for row in rows if not row.skipped))
    for target in TARGETS:
        if target.covers in done or target.statistic not in ("mean", "worst") or target.column != "cpu":
            continue
        done.add(target.covers)
        figure = speed(rows, [case for case in cases if target.applies_to(case)])
        if figure:
            times = [_milliseconds(figure.torch), _milliseconds(figure.fastlstm)]
            ratio = f"{figure.ratio:.2f}× ({figure.low:.2f} to {figure.high:.2f})"
            lines.append([target.row, str(figure.shapes), *times, ratio])
    return _table(lines)


def _milliseconds(seconds: Sequence[float]) -> str:
    """One time, or the shortest and the longest of several shapes."""
    values = [1e3 * value for value in (min(seconds), max(seconds))]
    texts = dict.fromkeys(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values)
    return f"{' to '.join(texts)} ms"


def every_case(rows: Sequence[Row]) -> str:
    """fastlstm and nn.LSTM, case by case: medians, ratio with the middle 60 % of pairs, share of a large GEMM."""
    lines = [["case", "contender", "median", "ratio to nn.LSTM", "20 % … 80 %", "of a large GEMM", "chosen", "torch's"]]
    for row in rows:
        if row.contender in SUITE_CONTENDERS and not row.skipped:
            ratio, spread = (
                ("", "") if row.ratio is None else (f"{row.ratio:.2f}", f"{row.ratio_p20:.2f} … {row.ratio_p80:.2f}")
            )
            share = "" if row.of_gemm is None else f"{row.of_gemm:.0%}"
            lines.append([row.case, row.contender, _median(row), ratio, spread, share, row.chosen, row.kernel])
    return _table(lines)


def _median(row: Row) -> str:
    if row.unit == "B":
        return f"{row.p50 / 1e6:.3g} MB"
    speed = f" ({row.characters / row.p50:,.0f} characters/s)" if row.characters else ""
    return f"{row.p50 * 1e3:.3g} ms{speed}"


def competitors(rows: Sequence[Row]) -> str:
    """Times as fast as nn.LSTM, a column a contender; then who took no part, and why."""
    names = list(
        dict.fromkeys(row.contender for row in rows if row.contender not in SUITE_CONTENDERS and not row.skipped)
    )
    cases = list(dict.fromkeys(row.case for row in rows if row.contender in names))
    ratios = {(row.case, row.contender): f"{row.ratio:.2f}" for row in rows if row.ratio is not None}
    columns = ["cpu", "dispatched", *names]
    table = [["case", *columns], *([case, *(ratios.get((case, name), "") for name in columns)] for case in cases)]
    reasons = dict.fromkeys(f"- {row.contender}: {row.skipped}" for row in rows if row.skipped)
    return "\n\n".join(part for part in (_table(table) if cases else "", "\n".join(reasons)) if part)


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|" + " --- |" * len(lines[0]), *body])


def readme_block(rows: Sequence[Row], source: str, picture: str) -> str:
    """The block between the markers: summary, picture, and where both come from."""
    first = rows[0]
    how = f"{first.cpu}, {first.threads} threads, {first.isa}, float32, torch {first.torch}, {commits(rows)}, {first.date}"
    what = (
        "Medians of interleaved rounds in one process; over several shapes the geometric mean, and the shortest and the "
        "longest time. In brackets: the 20 % quantile of the rounds in the slowest shape to the 80 % quantile in the "
        f"fastest. {how}; made from [{source}]({source}) by `python -m benchmarks.report {source} --readme`."
    )
    return "\n\n".join([BEGIN, summary(rows), f"![times as fast as nn.LSTM, by shape]({picture})", what, END])


def commits(rows: Sequence[Row]) -> str:
    """The commit that was measured. Rows of changed files or of several commits are called preliminary."""
    names = list(dict.fromkeys(row.commit for row in rows))
    if len(names) == 1 and not names[0].endswith("+"):
        return f"commit {names[0]}"
    text = ", ".join(
        f"{name.removesuffix('+')} with uncommitted changes" if name.endswith("+") else name for name in names
    )
    return f"**preliminary, not of one clean commit:** {text}"


def rewritten(text: str, block: str) -> str:
    """Return a README with the block in place of the one it has; raises ValueError without both markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md needs the line {BEGIN} and, after it, {END}, once each")
    return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]


def _rewrite_readme(files: Sequence[Path], rows: Sequence[Row]) -> None:
    if len(files) != 1 or files[0].suffix != ".csv":
        raise SystemExit("--readme takes one committed CSV file, so that its block can be made again")
    source = files[0].resolve()
    picture = source.with_name(source.stem + "-ratios.svg")
    plots.ratios(picture, rows)
    readme = ROOT / "README.md"
    paths = (str(path.relative_to(ROOT)) for path in (source, picture))
    readme.write_text(rewritten(readme.read_text(), readme_block(rows, *paths)))
    print(f"wrote the block in {readme.name} and {picture.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
