"""Results: the one schema through JSON and CSV, the Markdown made from it, the block in the README, the plots."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from benchmarks import layer, plots, report, schema, speed
from benchmarks.layer import LayerCall, shape
from benchmarks.machine import environment
from benchmarks.schema import Row
from benchmarks.suite import CASES, BenchmarkCase
from benchmarks.targets import TARGETS
from benchmarks.workload import Workload

WHERE = {"cpu": "Some CPU", "threads": 2, "isa": "avx2", "torch": "2.13.0", "commit": "abc123", "date": "2026-01-02"}


def results(ratio: float = 2.0) -> list[Row]:
    """Rows of every case on the CPU, nn.LSTM `ratio` times as slow as fastlstm."""
    rows = []
    for case in CASES:
        sizes = {"T": 64, "B": 1 + len(case.name) % 3, "H": 8 + len(rows), "L": 1, "of_gemm": 0.5}
        for contender, seconds in {"cpu": 1e-3, "dispatched": 1e-3, "torch": ratio * 1e-3}.items():
            quantiles = dict.fromkeys(("ratio_p20", "ratio", "ratio_p80"), ratio * 1e-3 / seconds)
            rows.append(Row(case.name, contender, p50=seconds, **quantiles, **sizes, **WHERE))
    return rows


def test_rows_read_from_csv_equal_those_written(tmp_path: Path):
    rows = [
        Row("a/b", "cpu", p20=0.5, p50=1e-6, rounds=3, packed=True, kernel='oneDNN, "x"', flops=1.25e9, **WHERE),
        Row("a/b", "jax", skipped="not installed, try: pip"),
    ]
    schema.write_csv(tmp_path / "rows.csv", rows)
    assert schema.read(tmp_path / "rows.csv") == rows


def test_figures_keep_six_digits(tmp_path: Path):
    schema.write_csv(tmp_path / "rows.csv", [Row("a/b", "cpu", p50=0.123456789)])
    assert schema.read(tmp_path / "rows.csv")[0].p50 == 0.123457


def test_a_file_of_another_schema_is_refused(tmp_path: Path):
    (tmp_path / "rows.csv").write_text("case,contender\na/b,cpu\n")
    with pytest.raises(ValueError, match="its columns are not those of"):
        schema.read(tmp_path / "rows.csv")
    (tmp_path / "other.json").write_text(json.dumps({"benchmarks": [{"extra_info": {}, "fullname": "test_x"}]}))
    with pytest.raises(ValueError, match="test_x has no rows"):
        schema.read(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"neither \.csv nor \.json"):
        schema.read(tmp_path / "rows.txt")


def test_a_measurement_becomes_rows_of_every_contender_and_of_those_left_out():
    workload = layer.layer(LayerCall(shape(5, 3, 8, packed=True)))
    workload.skipped["jax"] = "not here"
    times = {"cpu": [1.0, 2.0, 1.0], "dispatched": [2.0, 2.0, 2.0], "torch": [3.0, 3.0, 3.0]}
    calls = {"cpu": 7, "dispatched": 1, "torch": 1}
    rows = {
        row.contender: row
        for row in schema.of_times(BenchmarkCase("a/b", layer.layer), workload, times, calls, gemm=1e3)
    }
    assert list(rows) == ["cpu", "dispatched", "torch", "jax"]
    cpu = rows["cpu"]
    assert (cpu.p50, cpu.ratio, cpu.rounds, cpu.calls) == (1.0, 3.0, 3, 7)
    assert (cpu.T, cpu.B, cpu.H, cpu.packed, cpu.training, cpu.kernel) == (5, 3, 8, True, True, "ATen's loop")
    assert cpu.of_gemm == workload.flops / 1.0 / 1e3
    assert (rows["torch"].ratio, rows["jax"].skipped, rows["jax"].p50) == (1.0, "not here", None)


def test_rows_say_where_they_were_measured():
    names = {field.name for field in fields(Row)}
    assert set(environment()) <= names
    assert all(environment()[name] not in ("", None) for name in ("cpu", "isa", "torch", "threads", "commit"))


def test_a_later_file_replaces_a_case_and_keeps_the_others():
    first = [Row("a/1", "cpu", ratio=1.0), Row("a/1", "jax", ratio=1.0), Row("a/2", "cpu", ratio=1.0)]
    second = [Row("a/1", "cpu", ratio=2.0)]
    assert report.merged([first, second]) == [second[0], first[2]]


def test_the_summary_has_a_line_for_every_row_of_ratios_and_their_mean():
    text = report.summary(results(2.0))
    promised = {target.covers for target in TARGETS if target.statistic in ("mean", "worst") and target.column == "cpu"}
    assert text.count("\n") == 1 + len(promised)
    assert "| training step, B 16-128 | 15 | 2 ms | 1 ms | 2.00× (2.00 to 2.00) |" in text
    assert "| packed, H 128 | 1 | 2 ms | 1 ms | 2.00× (2.00 to 2.00) |" in text
    assert all("" not in [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())


def case_rows(case: str, ratios: dict[str, tuple[float, float, float]], chosen: str = "cpu", seconds: float = 1e-3):
    """Rows of one case: contender → its ratios to nn.LSTM, which takes two milliseconds: 20 % quantile, median, 80 %."""
    rows = [Row(case, "torch", p50=2e-3, ratio_p20=1.0, ratio=1.0, ratio_p80=1.0, chosen=chosen)]
    for name, (low, ratio, high) in ratios.items():
        rows.append(Row(case, name, p50=seconds, ratio_p20=low, ratio=ratio, ratio_p80=high, chosen=chosen))
    return rows


def test_two_series_of_the_same_code_are_one_figure_with_the_spread_of_both():
    rows = case_rows("packed/H128", {"cpu": (1.8, 2.0, 2.1), "dispatched": (7.0, 8.0, 9.0)})
    assert "| packed, H 128 | 1 | 2 ms | 1 ms | 4.00× (1.80 to 9.00) |" in report.summary(rows)
    assert [row.ratio for row in speed.as_used(rows)] == [4.0]


def test_a_forced_backend_that_dispatch_does_not_choose_is_not_what_a_user_gets():
    rows = case_rows("packed/H128", {"cpu": (0.1, 0.2, 0.3), "dispatched": (0.9, 1.0, 1.1)}, chosen="torch")
    assert "1.00× (0.90 to 1.10) |" in report.summary(rows)
    assert [row.ratio for row in speed.as_used(rows)] == [1.0]


def test_the_spread_over_shapes_is_from_the_slowest_to_the_fastest_and_so_are_the_times():
    rows = case_rows("training/H64-B16", {"cpu": (0.9, 1.0, 1.1)}, seconds=2e-3)
    rows += case_rows("training/H64-B50", {"cpu": (3.0, 4.0, 5.0)}, seconds=0.5e-3)
    assert "| training step, B 16-128 | 2 | 2 ms | 0.5 to 2 ms | 2.00× (0.90 to 5.00) |" in report.summary(rows)


def test_the_caption_names_one_clean_commit_or_says_that_it_is_preliminary():
    clean = results(2.0)
    assert report.commits(clean) == "commit abc123"
    changed = [replace(row, commit="abc123+") for row in clean]
    assert report.commits(changed) == "**preliminary, not of one clean commit:** abc123 with uncommitted changes"
    mixed = [*clean[:1], *(replace(row, commit="def456") for row in clean[1:])]
    assert report.commits(mixed) == "**preliminary, not of one clean commit:** abc123, def456"
    assert "preliminary" in report.readme_block(changed, "a.csv", "a.svg")
    assert "preliminary" not in report.readme_block(clean, "a.csv", "a.svg")


def test_competitors_stand_beside_fastlstm_and_absent_ones_below():
    rows = [
        Row("a/1", "cpu", p50=1.0, ratio=3.0),
        Row("a/1", "jax", p50=2.0, ratio=0.5),
        Row("a/1", "onnxruntime", skipped="not installed"),
    ]
    text = report.competitors(rows)
    assert "| a/1 | 3.00 |  | 0.50 |" in text
    assert "- onnxruntime: not installed" in text


def test_every_figure_of_the_page_names_its_unit():
    rows = [
        Row("saved/x", "cpu", "B", p50=2.5e6, ratio=2.0, ratio_p20=2.0, ratio_p80=2.0),
        Row("sampling/x", "cpu", p50=0.5, ratio=2.0, ratio_p20=1.0, ratio_p80=3.0, characters=1000),
    ]
    text = report.every_case(rows)
    assert "| 2.5 MB |" in text
    assert "| 500 ms (2,000 characters/s) | 2.00 | 1.00 … 3.00 |" in text


def test_the_report_writes_all_from_the_suites_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = {"benchmarks": [{"fullname": "x", "extra_info": {"rows": [asdict(row) for row in results()]}}]}
    (tmp_path / "full.json").write_text(json.dumps(data))
    report.main([str(tmp_path / "full.json"), "--out", str(tmp_path / "out")])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.csv", "results.md", "ratios.svg", "gemm.svg", "scaling.svg"}
    assert schema.read(tmp_path / "out" / "results.csv") == results()
    text = (tmp_path / "out" / "results.md").read_text()
    assert "Some CPU" in text
    assert all(f"]({name})" in text for name in names if name.endswith(".svg"))
    assert "3 plots" in capsys.readouterr().out


def test_plots_are_svg_and_the_same_each_time(tmp_path: Path):
    first = [path.read_bytes() for path in plots.write(tmp_path, results())]
    second = [path.read_bytes() for path in plots.write(tmp_path, results())]
    assert len(first) == 3
    assert first == second
    for text in first:
        assert ElementTree.fromstring(text).tag.endswith("svg")
    assert plots.write(tmp_path, []) == []


def test_a_plot_shows_what_was_measured(tmp_path: Path):
    plots.ratios(tmp_path / "one.svg", results(2.0))
    rows = [replace(row, ratio=7.25) if row.case == "packed/H128" else row for row in results(2.0)]
    plots.ratios(tmp_path / "two.svg", rows)
    assert " 7.25</text>" in (tmp_path / "two.svg").read_text()
    assert " 7.25</text>" not in (tmp_path / "one.svg").read_text()


def test_the_readme_block_is_replaced_and_the_rest_stays():
    old = f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n"
    block = report.readme_block(results(), "benchmarks/results/cpu.csv", "benchmarks/results/cpu-ratios.svg")
    new = report.rewritten(old, block)
    assert new.startswith("before\n\n")
    assert new.endswith("\n\nafter\n")
    assert "old" not in new
    assert "2.00×" in new
    assert "Some CPU, 2 threads, avx2, float32, torch 2.13.0, commit abc123, 2026-01-02" in new
    assert report.rewritten(new, block) == new
    with pytest.raises(ValueError, match=r"README\.md needs the line"):
        report.rewritten("no markers", block)


def test_readme_is_written_from_one_committed_csv_only(tmp_path: Path):
    with pytest.raises(SystemExit, match="one committed CSV file"):
        report._rewrite_readme([tmp_path / "a.json"], results())


def test_the_readme_block_is_what_its_csv_file_gives():
    text = (report.ROOT / "README.md").read_text()
    block = text[text.index(report.BEGIN) : text.index(report.END) + len(report.END)]
    if block == f"{report.BEGIN}\n{report.END}":
        pytest.skip("no official run has been made yet")
    source = block.rsplit("](", 1)[1].split(")")[0]
    picture = source.removesuffix(".csv") + "-ratios.svg"
    assert block == report.readme_block(schema.read(report.ROOT / source), source, picture)
    assert (report.ROOT / picture).exists()


def test_a_workload_without_a_layer_has_no_sizes():
    assert schema.shapes(Workload({}))["dtype"] == "float32"
    assert "T" not in schema.shapes(Workload({}))
