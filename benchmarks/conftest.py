"""Fixtures and options of the suite: `speed` times one case and keeps its rows; `--full`, `--seconds`, `--threads`.

`make bench` runs the quick part, `make bench-full` all cases. pytest-benchmark times fastlstm's samples; the other
contenders run in the setup of each round, so that all contenders take turns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.machine import environment
from benchmarks.runner import run_case
from benchmarks.schema import Row
from benchmarks.suite import CASES, BenchmarkCase
from benchmarks.timing import Interleaved


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastlstm")
    group.addoption("--full", action="store_true", help="all cases, not the quick part alone")
    group.addoption("--seconds", type=float, default=2.0, help="time for the rounds of a case, at least three rounds")
    group.addoption("--threads", type=int, default=2, help="torch's threads")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: not in the quick part; runs with --full")
    config.addinivalue_line("markers", "groups(*names): the cases that a test runs")
    warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")


def pytest_report_header(config: pytest.Config) -> str:
    torch.set_num_threads(config.getoption("--threads"))
    return "  ".join(f"{name} {value}" for name, value in environment().items())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info.update(fastlstm=environment())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `case` with the cases of the groups that the test names in its `groups` mark."""
    mark = metafunc.definition.get_closest_marker("groups")
    if mark is None:
        return
    cases = [case for case in CASES if case.group in mark.args]
    marks = {case: [] if case.quick else [pytest.mark.full] for case in cases}
    metafunc.parametrize("case", [pytest.param(case, marks=marks[case], id=case.name) for case in cases])


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(request.config.getoption("--threads"))


Keep = Callable[[list[Row]], list[Row]]


@pytest.fixture
def keep(benchmark, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Keep:
    """Return a function that stores rows, with the machine, in the benchmark's JSON and prints them."""

    def keep_rows(rows: list[Row]) -> list[Row]:
        where, items = environment(), request.session.items
        rows = [replace(row, **where | ({"threads": row.threads} if row.threads else {})) for row in rows]
        benchmark.group = rows[0].group
        benchmark.extra_info["rows"] = [asdict(row) for row in rows]
        with capsys.disabled():
            print(f"\n[{items.index(request.node) + 1}/{len(items)}] {rows[0].case}")
            for row in rows:
                print("  " + line_of(row), flush=True)
        return rows

    return keep_rows


def line_of(row: Row) -> str:
    """Return the line that is printed of a row."""
    if row.skipped:
        return f"{row.contender:14}skipped: {row.skipped}"
    size = f"{row.p50 * 1e3:10.3f} ms" if row.unit == "s" else f"{row.p50 / 1e6:10.3f} MB"
    ratio = "" if row.ratio is None else f"{row.ratio:8.2f} × nn.LSTM"
    return f"{row.contender:14}{size}{ratio}" + (f"{row.of_gemm:8.0%} of a large GEMM" if row.of_gemm else "")


@pytest.fixture
def speed(benchmark, keep: Keep, request: pytest.FixtureRequest) -> Callable[[BenchmarkCase], list[Row]]:
    """Return a function that checks the outputs of a case, then times it. Skips the test if this fastlstm cannot run it."""

    def drive(turns: Interleaved, rounds: int) -> None:
        benchmark.pedantic(turns.run_first, setup=turns.before_first, rounds=rounds, iterations=1)
        turns.times[turns.first] = [seconds / turns.calls[turns.first] for seconds in benchmark.stats.stats.data]

    def check_and_time(case: BenchmarkCase) -> list[Row]:
        try:
            return keep(run_case(case, request.config.getoption("--seconds"), drive))
        except ImportError as error:
            pytest.skip(str(error))

    return check_and_time
