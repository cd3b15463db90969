"""The timer of the benchmarks: turns, samples, ratios. Time itself is a counter here."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from benchmarks import timing
from benchmarks.schema import Row, quantiles
from benchmarks.timing import (
    LEAST_ROUNDS,
    MOST_ROUNDS,
    Interleaved,
    pair_ratios,
    quantile,
    take_turns,
    undisturbed,
)


class Bench:
    """Steps that advance a clock and write down their turns."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.turns, self.open = 0.0, [], []
        self.steps = {name: self._step(name, s) for name, s in seconds.items()}

    def _step(self, name: str, seconds: float):
        def step() -> None:
            self.turns.append((name, tuple(self.open)))
            self.now += seconds

        return step

    def names(self) -> list[str]:
        return [name for name, _ in self.turns if name != "finish"]

    @contextmanager
    def inside(self, name: str):
        self.open.append(name)
        self.now += 100  # entering the context is not part of a sample
        yield
        self.open.remove(name)

    def finish(self) -> None:
        self.turns.append(("finish", ()))

    def interleaved(self, first: str) -> Interleaved:
        return Interleaved(self.steps, first, self.inside, self.finish, lambda: self.now)


def test_contenders_take_turns_and_the_first_ends_a_round():
    bench = Bench(cpu=1.0, torch=2.0, loop=3.0)
    turns = bench.interleaved("cpu")
    bench.turns.clear()
    take_turns(turns, 5)
    times = turns.times
    assert bench.names() == ["torch", "loop", "cpu"] * 5
    assert times == {"cpu": [1.0] * 5, "torch": [2.0] * 5, "loop": [3.0] * 5}


def test_the_machine_settles_after_each_sample_and_rounds_know_how_long_it_takes():
    bench = Bench(cpu=1.0, torch=2.0)

    def settle(name: str) -> None:
        bench.turns.append((f"{name} settles", ()))
        bench.now += 4.0 if name == "torch" else 0.0

    turns = Interleaved(bench.steps, "cpu", clock=lambda: bench.now, settle=settle)
    bench.turns.clear()
    take_turns(turns, 2)
    assert bench.names() == ["torch", "torch settles", "cpu", "cpu settles"] * 2
    assert turns.times == {"cpu": [1.0] * 2, "torch": [2.0] * 2}
    assert turns.rounds_for(70.0) == 10


def test_warm_contenders_are_called_once_before_a_sample():
    bench = Bench(cpu=1.0, torch=2.0)
    turns = Interleaved(bench.steps, "cpu", clock=lambda: bench.now, warm=True)
    bench.turns.clear()
    take_turns(turns, 2)
    assert bench.names() == ["torch", "torch", "cpu", "cpu"] * 2
    assert turns.times == {"cpu": [1.0] * 2, "torch": [2.0] * 2}


@pytest.mark.parametrize(("busy", "looks", "rests"), [([1.0, 0.5, 0.1], 3, True), ([0.3] * 99, 50, False)])
def test_wait_for_rest_ends_when_other_threads_are_idle_or_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, busy: list[float], looks: int, rests: bool
):
    """busy: cores in use while it sleeps, time after time; rest is less than a fifth of one."""
    now, used, slept = [0.0], [0.0], []

    def sleep(seconds: float) -> None:
        used[0] += busy[len(slept)] * seconds
        now[0] += seconds
        slept.append(seconds)

    fake = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: used[0], sleep=sleep)
    monkeypatch.setattr(timing, "time", fake)
    assert timing.wait_for_rest(most=0.5, look=0.01) is rests
    assert len(slept) == looks


def test_each_sample_is_taken_inside_its_own_context_and_without_its_cost():
    bench = Bench(cpu=1.0, torch=2.0)
    turns = bench.interleaved("cpu")
    take_turns(turns, LEAST_ROUNDS)
    times = turns.times
    assert all(inside == (name,) for name, inside in bench.turns if name != "finish")
    assert times["torch"] == [2.0] * LEAST_ROUNDS


def test_a_short_step_is_repeated_until_the_sample_is_long_enough_after_a_warm_call():
    bench = Bench(cpu=1e-4, torch=1.0)
    turns = bench.interleaved("cpu")
    assert turns.calls["torch"] == 1
    assert 20 <= turns.calls["cpu"] <= 21
    bench.turns.clear()
    turns.sample("cpu")
    assert bench.names() == ["cpu"] * (turns.calls["cpu"] + 1)
    assert turns.times["cpu"] == [pytest.approx(1e-4)]


def test_a_timer_outside_sees_the_calls_of_one_sample_and_their_end():
    bench = Bench(cpu=1e-4, torch=1.0)
    turns = bench.interleaved("cpu")
    bench.turns.clear()
    turns.before_first()
    assert bench.names() == ["torch", "cpu"]  # the others, then the warm call
    bench.turns.clear()
    turns.run_first()
    assert bench.turns == [("cpu", ("cpu",))] * turns.calls["cpu"] + [("finish", ())]


def test_a_sample_waits_for_started_work_before_and_after():
    bench = Bench(cpu=1.0)
    turns = bench.interleaved("cpu")
    bench.turns.clear()
    turns.sample("cpu")
    assert [name for name, _ in bench.turns] == ["finish", "cpu", "finish"]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, LEAST_ROUNDS), (30.0, 10), (1e9, MOST_ROUNDS)])
def test_rounds_fill_the_time_within_bounds(seconds: float, rounds: int):
    assert Bench(cpu=1.0, torch=2.0).interleaved("cpu").rounds_for(seconds) == rounds


def test_a_ratio_is_the_median_of_pairs_so_a_slow_round_does_not_count():
    times = {"cpu": [1.0, 10.0, 1.0, 2.0, 1.0], "torch": [2.0, 20.0, 2.0, 2.0, 900.0]}
    assert pair_ratios(times, "cpu", "torch") == [2.0, 2.0, 2.0, 1.0, 900.0]
    row = quantiles(Row("a/b", "cpu"), times["cpu"], pair_ratios(times, "cpu", "torch"))
    assert (row.p20, row.p50, row.p80, row.rounds) == (1.0, 1.0, 10.0, 5)
    assert (row.ratio_p20, row.ratio, row.ratio_p80) == (2.0, 2.0, 900.0)


def test_rounds_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        pair_ratios({"cpu": [1.0, 1.0], "torch": [1.0]}, "cpu", "torch")


def test_quantile_is_a_value_that_was_measured():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [quantile(values, q) for q in (0.0, 0.2, 0.5, 0.8, 1.0)] == [1.0, 2.0, 3.0, 5.0, 5.0]


@pytest.mark.parametrize("on", [True, False])
def test_garbage_collection_is_off_inside_and_as_it_was_after(on: bool):
    try:
        (gc.enable if on else gc.disable)()
        with undisturbed():
            assert not gc.isenabled()
        assert gc.isenabled() is on
    finally:
        gc.enable()
