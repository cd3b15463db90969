"""The inline PTX is the only statement of an instruction: nvcc assembles the text that the simulation reads. So an operand
changed in the text must make a run fail, or the simulation would test something else than what a GPU runs."""

from __future__ import annotations

import re

import pytest
import torch

from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import status as cuda_status
from fastlstm.ops.arguments import OpInputs
from fastlstm.testing.cases import make
from tests.hostsim import backend as hostsim
from tests.hostsim.decoding import Run, decode, expected
from tests.hostsim.shapes import BF16, COOPERATIVE, F16, F32, LEAN, SINGLE_BLOCK, TF32, check, dense, plan_of, settings
from tests.sampling.models import make_model

CASE = dense(3, 9, 24, initial=True)
RUNS = [
    (SINGLE_BLOCK[1], F32),
    (SINGLE_BLOCK[1], F16),
    (COOPERATIVE[1], TF32),
    (COOPERATIVE[1], BF16),
    (LEAN[1], BF16),
    (LEAN[0], TF32),
]
BARE = ("cp.async.commit_group;", "trap;")  # no operands


def _runs() -> None:
    for shape, math in RUNS:
        check(shape, CASE, math, seed=0)


def _draws() -> None:
    torch.manual_seed(0)
    model, run = make_model(5, None, 9, 2), Run(3, length=4)
    assert torch.equal(decode(model, run).ids, expected(model, run).ids)


def _times_out(lib) -> None:
    plan = plan_of(COOPERATIVE[0], CASE, F32)
    plan.forward.t.unit_blocks -= 1
    lib.clock_jumps(True)
    try:
        with settings(COOPERATIVE[0], CASE, F32, 0), hostsim.Simulated(lib) as rt:
            cuda_launch.forward(rt, plan, OpInputs(*make(CASE, torch.float32), False, 1))
            assert rt.status.item() == cuda_status.TIMED_OUT
    finally:
        lib.clock_jumps(False)
        hostsim._status.zero_()


def _changed(text: str):
    """The text with one operand exchanged for another of its own, each in turn; a lone literal for another number."""
    matches = list(re.finditer(r"(?<![\w.%])(%\d+|%%\w+|\d+)(?![\w.])", text))
    operands = [m[0] for m in matches]
    for m in matches:
        other = next((operand for operand in operands[operands.index(m[0]) + 1 :] + operands if operand != m[0]), "2")
        if not m[0].startswith("%"):
            other = str(int(m[0]) // 2)
        yield text[: m.start()] + other + text[m.end() :]


@pytest.fixture
def texts(hostsim_library):
    hostsim_library.rewrite("", "")
    _runs()
    _draws()
    _times_out(hostsim_library)
    yield sorted(set(hostsim_library.texts()))
    hostsim_library.rewrite("", "")


def test_every_operand_of_every_text_counts(hostsim_library, texts):
    in_source = (hostsim.build.CSRC / "cuda").glob("*.cuh")
    statements = sum(len(re.findall(r"\bPTX(?:_VALUE)?\(\"", f.read_text())) for f in in_source)
    assert len(texts) == statements - 2 - 2 + 2  # sm_75's two, a trap each for what it has not; mma's macro is three
    unseen = []
    for text in texts:
        if text in BARE:
            continue
        changes = list(_changed(text))
        assert changes, text
        for other in changes:
            hostsim_library.rewrite(text, other)
            if not _fails(hostsim_library, text):
                unseen.append(f"{text} -> {other}")
    assert not unseen, "\n".join(unseen)


def _fails(lib, text: str) -> bool:
    rare, of_decode = ".sys" in text or "globaltimer" in text, ".b64" in text
    try:
        _times_out(lib) if rare else _draws() if of_decode else _runs()
    except (hostsim.Fault, AssertionError):
        return True
    return False
