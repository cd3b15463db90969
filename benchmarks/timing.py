"""Interleaved timing: every contender runs once a round in one process, so that a slow minute slows all of them.

A ratio is the median over rounds of (their time / our time) within a round: above 1 we are faster. A step is a
function without arguments that does the work once; short steps are repeated until a sample is long enough for the clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

Step = Callable[[], object]
Inside = Callable[[str], AbstractContextManager[object]]
Times = dict[str, list[float]]

SAMPLE_SECONDS = 2e-3  # shorter samples measure the clock and the cache of the contender before
LEAST_ROUNDS, MOST_ROUNDS = 3, 201


class Interleaved:
    """The contenders of one case. `first` is timed by the caller (or by `measure`), the others by `others`.

    steps: name → step, each called before (the check of its output does that); first: the name of the one that ends a
    round; inside: the context that a contender's samples are taken in, entered before the clock starts; finish: waits for
    work that a step only started (a GPU's); clock: seconds; settle: called after each sample with its name: brings the machine
    back to how the others expect it; warm: an untimed call before every sample, not before those of short steps alone.
    """

    def __init__(
        self,
        steps: Mapping[str, Step],
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
        """Seconds of one call; the least of three where it is short, since a first call is slower."""
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
            found = (self.clock() - start) / calls
        start = self.clock()
        self.settle(name)
        self.settling[name] = self.clock() - start
        return found

    def sample(self, name: str) -> None:
        """Take and keep one sample of one contender."""
        self.times[name].append(self._seconds(name, self.calls[name]))

    def others(self) -> None:
        """One sample of every contender but the first."""
        for name in self.steps:
            if name != self.first:
                self.sample(name)

    def before_first(self) -> None:
        """All of a round but the last sample, for a timer outside that then times `run_first`."""
        self.others()
        if self.calls[self.first] > 1 or self.warm:
            with self.inside(self.first):
                self.steps[self.first]()
        self.finish()

    def run_first(self) -> None:
        """The calls of one sample of the first."""
        with self.inside(self.first):
            step = self.steps[self.first]
            for _ in range(self.calls[self.first]):
                step()
            self.finish()

    def rounds_for(self, seconds: float) -> int:
        """How many rounds fit into `seconds`."""
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
    """No garbage collection inside."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def take_turns(turns: Interleaved, rounds: int) -> None:
    """Run the rounds; every contender's seconds are then in `turns.times`."""
    for _ in range(rounds):
        turns.others()
        turns.sample(turns.first)


def pair_ratios(times: Times, ours: str, theirs: str) -> list[float]:
    """Return their time / our time, round by round."""
    return [b / a for a, b in zip(times[ours], times[theirs], strict=True)]


def quantile(values: list[float], q: float) -> float:
    """Return the value below which a share q of the sorted values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
