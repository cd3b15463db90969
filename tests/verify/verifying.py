"""What tests of `fastlstm doctor --verify` have instead of a GPU: a timer, a machine, a plan, processes that are lost."""

from __future__ import annotations

import itertools

import torch

from fastlstm.backends.base import Backend
from fastlstm.ops import reference
from fastlstm.testing.cases import SHORT
from fastlstm.verify import correctness, isolate, record, timings
from fastlstm.verify.plans import VerifyPlan, Workload
from fastlstm.verify.run import Machine, verify
from fastlstm.verify.stages import Started

SMALL = correctness.Table((SHORT[0], SHORT[5]), ("float32", "bfloat16"))
CELLS = tuple(timings.grid("dense", (4, 8), (2,), (3,), maths=("float32",)))


class Fake(Backend):
    """A backend that passes for `cuda` and runs the reference; what a test gives takes the place of methods."""

    name = "cuda"

    def __init__(self, **given):
        vars(self).update(given)

    def forward(self, inputs):
        return reference.forward(*inputs)

    def backward(self, inputs, saved, grads):
        return reference.backward(*grads, *inputs, *saved)


def clock(*costs: float):
    """A timer for which the contenders of a round take these seconds in turn, with a second between them."""
    steps = itertools.chain.from_iterable((1.0, cost) for cost in itertools.cycle(costs))
    told = itertools.accumulate(steps)
    return lambda: next(told)


def machine(*costs: float) -> Machine:
    return Machine(torch.device("cpu"), "Fake GPU", clock(*costs))


def plan(*candidates: str, process=isolate.here, table=SMALL, cells=CELLS, **limits) -> VerifyPlan:
    limits = {"silence": 60.0, "checking": 60.0, "whole": 120.0, **limits}
    return VerifyPlan(candidates, lambda present: Workload(dict.fromkeys(present, table), cells, **limits), process)


def verified(*costs: float, plan: VerifyPlan) -> tuple[int, dict, str]:
    """The exit code, the record and what was said."""
    said = []
    code = verify(said.append, [machine(*costs)], plan)
    record.forget()
    return code, record.read("Fake GPU"), "\n".join(said)


def losing(stage: str, index: int, part: str = "", turn: int = 1, why: str = "the process ended with code -11"):
    """A process that is lost once, in a stage, when this part of an item begins for the `turn`-th time."""
    lost = []

    def process(work, todo, *args, **limits):
        turns = 0
        for found in work(todo, *args):
            yield found
            at = (found.index, found.part) if isinstance(found, Started) else None
            turns += work.__module__.endswith(stage) and at == (index, part)
            if turns == turn and not lost:
                lost.append(found)
                raise isolate.LostError(why, silent=why.startswith("nothing came"))

    return process
