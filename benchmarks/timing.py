"""Interleaved timing: every contender runs once per round in one process, so that a slow minute slows all of them.

A ratio is the median over rounds of (nn.LSTM's time / the contender's time): above 1 is faster than nn.LSTM. A step is a
function without arguments; a short step is repeated until the sample is long enough for the clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

TimedStep = Callable[[], object]
Inside = Callable[[str], AbstractContextManager[object]]
Times = dict[str, list[float]]

SAMPLE_SECONDS = 2e-3  # shorter samples measure the clock, and the cache that the previous contender left
LEAST_ROUNDS, MOST_ROUNDS = 3, 201


class Interleaved:
    """The contenders of one case. The caller times `first` (or calls `sample`); `others` times the others.

    Args:
        steps: name → step. The check of its output has called each step before.
        first: the contender that ends a round.
        inside: the context of a contender's samples, entered before the clock starts.
        finish: waits for work that a step only started (on a GPU).
        clock: returns seconds.
        settle: called after each sample with the contender's name; brings the machine back to rest.
        warm: call each step once, untimed, before every sample, not only short steps.
    """

    def __init__(
        self,
        steps: Mapping[str, TimedStep],
        first: str,
        inside: Inside = lambda name: nullcontext(),
        finish: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        settle: Callable[[str], object] = lambda name: None,
        warm: bool = False,
    ) -> None:
        self.steps, self.first, self.inside, self.finish, self.clock = dict(steps), first, inside, finish, clock
        self.settle, self.warm, self.settling = settle, warm, dict.fromkeys(steps, 0.0)
        self.times: Times = {name: [] for name in steps}
        once = {name: self._once(name) for name in self.steps}
        self.calls = {name: _calls(seconds) for name, seconds in once.items()}
        self.round_seconds = sum(once[name] * (n + warm) + self.settling[name] for name, n in self.calls.items())

    def _once(self, name: str) -> float:
        """Return the seconds of one call; the least of three calls if it is short, since the first call is slower."""
        once = self._seconds(name, 1)
        return once if once >= SAMPLE_SECONDS else min(once, self._seconds(name, 1), self._seconds(name, 1))

    def _seconds(self, name: str, calls: int) -> float:
        step = self.steps[name]
        with self.inside(name):
            # A short step then finds its weights where its own last call left them, not where another contender did.
            if calls > 1 or self.warm:
                step()
            self.finish()
            start = self.clock()
            for _ in range(calls):
                step()
            self.finish()
            seconds = (self.clock() - start) / calls
        start = self.clock()
        self.settle(name)
        self.settling[name] = self.clock() - start
        return seconds

    def sample(self, name: str) -> None:
        """Take one sample of one contender and store it in `times`."""
        self.times[name].append(self._seconds(name, self.calls[name]))

    def others(self) -> None:
        """Take one sample of every contender except `first`."""
        for name in self.steps:
            if name != self.first:
                self.sample(name)

    def before_first(self) -> None:
        """Run a round without the sample of `first`; an external timer then times `run_first`."""
        self.others()
        if self.calls[self.first] > 1 or self.warm:
            with self.inside(self.first):
                self.steps[self.first]()
        self.finish()

    def run_first(self) -> None:
        """Make the calls of one sample of `first`."""
        with self.inside(self.first):
            step = self.steps[self.first]
            for _ in range(self.calls[self.first]):
                step()
            self.finish()

    def rounds_for(self, seconds: float) -> int:
        """Return how many rounds fit into `seconds`, between LEAST_ROUNDS and MOST_ROUNDS."""
        return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / max(self.round_seconds, 1e-6))))


def wait_for_rest(most: float = 0.5, look: float = 2e-3) -> bool:
    """Sleep until the other threads of this process use less than a fifth of a core; False after `most` seconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < most:
        wall, busy = time.perf_counter(), time.process_time()
        time.sleep(look)
        if time.process_time() - busy < 0.2 * (time.perf_counter() - wall):
            return True
    return False


def _calls(once: float) -> int:
    return 1 if once >= SAMPLE_SECONDS else min(1000, int(SAMPLE_SECONDS / max(once, 1e-7)) + 1)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Turn garbage collection off inside the context."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def take_turns(turns: Interleaved, rounds: int) -> None:
    """Run the rounds. The seconds of every contender are then in `turns.times`."""
    for _ in range(rounds):
        turns.others()
        turns.sample(turns.first)


def pair_ratios(times: Times, contender: str, baseline: str) -> list[float]:
    """Return the baseline's time / the contender's time, round by round."""
    return [b / a for a, b in zip(times[contender], times[baseline], strict=True)]


def quantile(values: list[float], q: float) -> float:
    """Return the value below which a share q of the sorted values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
