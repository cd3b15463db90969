"""What tests of `fastlstm doctor --verify` have instead of a GPU: a timer, a machine, a plan, processes that fail."""

from __future__ import annotations

import itertools

import torch

from fastlstm.backends.base import Backend
from fastlstm.ops import reference
from fastlstm.testing.cases import SHORT
from fastlstm.verify import correctness, isolate, record, timings
from fastlstm.verify.plans import VerifyPlan, VerifyWorkload
from fastlstm.verify.run import Machine, verify
from fastlstm.verify.stages import Started

SMALL = correctness.Table((SHORT[0], SHORT[5]), ("float32", "bfloat16"))
POINTS = tuple(timings.grid("dense", (4, 8), (2,), (3,), maths=("float32",)))


class FakeBackend(Backend):
    """A backend that passes for `cuda` and runs the reference; the overrides of a test take the place of its methods."""

    name = "cuda"

    def __init__(self, **overrides):
        vars(self).update(overrides)

    def forward(self, inputs):
        return reference.forward(*inputs)

    def backward(self, inputs, saved, grads):
        return reference.backward(*grads, *inputs, *saved)


def fake_clock(*costs: float):
    """A timer for which the contenders of a round take these seconds in turn, with a second between them."""
    steps = itertools.chain.from_iterable((1.0, cost) for cost in itertools.cycle(costs))
    times = itertools.accumulate(steps)
    return lambda: next(times)


def fake_machine(*costs: float) -> Machine:
    return Machine(torch.device("cpu"), "Fake GPU", fake_clock(*costs))


def plan(*candidates: str, process=isolate.inline, table=SMALL, points=POINTS, **limits) -> VerifyPlan:
    limits = {"timeout": 60.0, "check_limit": 60.0, "total_limit": 120.0, **limits}
    return VerifyPlan(
        candidates, lambda present: VerifyWorkload(dict.fromkeys(present, table), points, **limits), process
    )


def run_verify(*costs: float, plan: VerifyPlan) -> tuple[int, dict, str]:
    """The exit code, the record and what was printed."""
    lines = []
    code = verify(lines.append, [fake_machine(*costs)], plan)
    record.forget()
    return code, record.read("Fake GPU"), "\n".join(lines)


def failing_process(
    stage: str, index: int, part: str = "", turn: int = 1, reason: str = "the process ended with code -11"
):
    """A process that fails once, in a stage, when this part of an item begins for the `turn`-th time."""
    failed = []

    def process(work, items, *args, **limits):
        turns = 0
        for value in work(items, *args):
            yield value
            position = (value.index, value.part) if isinstance(value, Started) else None
            turns += work.__module__.endswith(stage) and position == (index, part)
            if turns == turn and not failed:
                failed.append(value)
                raise isolate.ProcessFailedError(reason, timed_out=reason.startswith("nothing came"))

    return process
