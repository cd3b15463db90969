"""The table of targets: which cases a row covers, and when it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import benchmarks.__main__
from benchmarks import runner, schema, table
from benchmarks.schema import Row
from benchmarks.suite import CASES
from benchmarks.targets import TARGETS, Target, least_ratio


def row(case: str, ratio: float, chosen: str = "cpu", contender: str = "cpu", **other: object) -> Row:
    return Row(case, contender, ratio=ratio, chosen=chosen, **other)


def test_every_target_covers_cases_that_exist():
    names = [case.name for case in CASES] + [f"{name}/any" for name in table.OTHERS]
    for target in TARGETS:
        assert any(target.applies_to(name) for name in names), target.row


@pytest.mark.parametrize(
    ("groups", "shapes"),
    [(("training",), 15), (("training-b1",), 5), (("training", "training-b1"), 20), (("forward", "forward-b1"), 20)],
)
def test_the_grid_has_the_shapes_that_its_targets_speak_of(groups: tuple[str, ...], shapes: int):
    target = next(target for target in TARGETS if target.covers == groups)
    assert sum(target.applies_to(case.name) for case in CASES) == shapes


@pytest.mark.parametrize(
    ("statistic", "bound", "value", "met"),
    [
        ("mean", 1.2, 1.2, True),
        ("worst", 1.2, 1.19, False),
        ("share", 0.2, 0.2, True),
        ("share", 0.2, 0.21, False),
        ("size", 0.5, 0.51, False),
        ("seconds", 0.05, 0.04, True),
        ("bytes", 3e6, 3.1e6, False),
    ],
)
def test_ratios_must_reach_the_bound_and_other_statistics_must_not_exceed_it(
    statistic: str, bound: float, value: float, met: bool
):
    assert Target("row", ("a",), statistic, bound).met(value) is met


def test_a_target_computes_its_statistic_over_the_rows_that_it_covers():
    rows = [row("a/1", 1.0, "torch", p50=3.0), row("a/2", 4.0, p50=2.0), row("b/1", 0.1, "torch")]
    rows += [row("a/1", 9.0, contender="jax"), Row("a/3", "cpu", skipped="no")]

    def value(covers: tuple[str, ...], statistic: str, column: str = "cpu") -> float:
        target = Target("row", covers, statistic, 1.0, column)
        return target.value(target.select(rows))

    assert value(("a",), "mean") == pytest.approx(2.0)
    assert value(("a", "b"), "worst") == 0.1
    assert value(("a",), "share") == 0.5
    assert value(("a/2",), "size") == 0.25
    assert value(("a",), "seconds") == 3.0
    assert value(("a",), "worst", "jax") == 9.0


def test_the_table_reads_a_file_and_fails_where_a_target_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "rows.csv"
    schema.write_csv(file, [row("packed/H128", 4.5), row("projection/H256-P128-B50", 9.0)])
    assert table.main(["--from", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "packed, H 128" in shown
    assert "projection" not in shown, "one of its two cases is not there"
    schema.write_csv(file, [row("packed/H128", 3.9)])
    assert table.main(["--from", str(file)]) == 1
    assert "3.9       4  missed" in capsys.readouterr().out


def test_list_prints_the_names_of_the_matching_cases(capsys: pytest.CaptureFixture[str]):
    assert table.main(["--list", "--only", "^packed"]) == 0
    assert capsys.readouterr().out.split() == ["packed/H128", "packed/H256", "packed-bidirectional/H256"]


def test_least_ratio_of_a_case_is_its_highest_target():
    assert least_ratio("packed/H128") == 4.0
    assert least_ratio("training/H64-B16") == 0.97
    assert least_ratio("scaling-T/T8") is None


def test_quick_prints_the_targets_beside_the_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    words = ["benchmarks", "--quick", "-k", "one-step/1x8", "--seconds", "0", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    for module in (table, runner):
        monkeypatch.setattr(module, "gemm_rate", lambda *_: 1e9)
    before = torch.get_num_threads()
    try:
        assert benchmarks.__main__.main() == 0
    finally:
        torch.set_num_threads(before)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("one-step/1x8"))
    assert " 1.00  cpu" in line, "the target stands before the backend"
    rows = schema.read(tmp_path / "quick.csv")
    assert [row.contender for row in rows] == ["cpu", "dispatched", "torch"]
    assert {row.threads for row in rows} == {2}
