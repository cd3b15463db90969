"""The simulation finds real faults: the shipped kernels with one fault each, compiled, must fail; without it they pass."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from fastlstm.testing import layers
from fastlstm.testing.cases import Case
from tests.hostsim import backend as hostsim
from tests.hostsim import build
from tests.hostsim.apart import apart
from tests.hostsim.decoding import Run, decode, expected
from tests.hostsim.mutations import CLASSES, MUTATIONS, ORDER, ROW, TAIL, Mutation
from tests.hostsim.shapes import BF16, COOPERATIVE, F32, LEAN, PER_STEP, SINGLE_BLOCK, Shape, check, check_bias, dense
from tests.sampling.models import make_model

# Rows of a multiple of 16 bytes and not, tails of units and sequences, resets, several tiles and phases
CASES = (dense(4, 19, 40, initial=True), dense(3, 9, 21, initial=True, reset=True))
SHAPES = {
    "per_step": (PER_STEP,),
    "single_block": SINGLE_BLOCK[1::2],
    "cooperative": (COOPERATIVE[1], COOPERATIVE[3], *COOPERATIVE[5:]),
}
# `lean` has an instance for each number of spans, groups and tiles; these runs take the two that LEAN_INSTANCES lists. Dense
# rows, several passes, 40 units in blocks of 16; then resets, several spans a warp of which some have no numbers, and forward
# passes of two tiles
SMALL = dense(4, 19, 40, initial=True)
LEAN_RUNS = {
    "lean_forward": ((LEAN[2], SMALL), (LEAN[4], dense(4, 9, 264, initial=True, reset=True))),
    "lean_backward": ((LEAN[2], SMALL), (LEAN[0], dense(3, 9, 136, initial=True, reset=True))),
}
LEAN_INSTANCES = {"lean_forward": "X(1, 2, 1) X(2, 2, 2)", "lean_backward": "X(1, 4) X(4, 1)"}
DECODE = "decode"  # the sampling loop, in the instances for 1, 2 and 8 streams
DECODE_RUNS = (
    Run(2, sms=9, shared_kib=227, options={"stop": [3], "top_k": 4}),
    Run(5, sms=3, options={"stop": [[1, 0], 2], "top_p": 0.9}),
    Run(11, length=4, options={"stop": [4], "top_k": 5}),
    Run(5, options={"automaton": (torch.tensor([[0, 1, 0, -1, 1, 0], [0, -1, 1, 0, -1, 1]]), 0)}),
)
LAYERS = ("lean_layers_forward", "lean_layers_backward")
LAYER_CASES = (dense(4, 9, 24), dense(3, 3, 40, reset=True, reverse=True))
SMS = 40
SEEDS = range(4)  # every policy of scheduling
LIMIT = 300  # seconds for one kernel with a fault, which is compiled first
# One type is enough and compiles four times as fast
ONE_TYPE = """namespace fastlstm::cuda {{
template <class F>
int with_one_type(Type, F f) {{
  return f({cpp}{{}});
}}
}}  // namespace fastlstm::cuda
#define with_type with_one_type
#define with_tensor_core_type with_one_type

namespace fastlstm::cuda {{"""
FEW_INSTANCES = "#undef {macro}\n#define {macro}(X) {instances}\n"


def _copy(stem: str, cpp: str, folder: Path) -> Path:
    """A copy of csrc in which one kernel file has few instances, and so compiles in seconds."""
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC / "cuda", csrc / "cuda")
    shutil.copy(build.CSRC / "cell.h", csrc)
    kernel, other = csrc / "cuda" / f"{stem}.cu", ONE_TYPE.format(cpp=cpp)
    if stem in LEAN_INSTANCES:
        other = FEW_INSTANCES.format(macro=f"FASTLSTM_{stem.upper()}", instances=LEAN_INSTANCES[stem]) + other
    if stem == DECODE:
        text = kernel.read_text().replace("decode_kernel<W, 4>", "decode_kernel<W, 8>").replace("<bfloat_t>", "<float>")
        kernel.write_text(text)
    elif stem != "per_step":
        kernel.write_text(kernel.read_text().replace("namespace fastlstm::cuda {", other, 1))
    return csrc


def mutated(mutation: Mutation, stem: str, folder: Path) -> Path:
    """A copy of csrc in which one kernel file sees the fault; the others include it too but are not compiled anew."""
    csrc = _copy(stem, mutation.cpp, folder)
    file, _, text = mutation.find(csrc / "cuda")
    file.write_text(text)
    return csrc


def _runs(stem: str) -> list[tuple[Shape, Case]]:
    if stem in LEAN_RUNS:
        return list(LEAN_RUNS[stem])
    return list(product(SHAPES[stem.removesuffix("_forward").removesuffix("_backward")], CASES))


def _failure(stem: str, csrc: Path, math: str) -> str | None:
    """What the first run that fails says."""
    for seed in SEEDS:
        if stem.startswith("lean_layers") or stem == DECODE:
            failure = (_failure_of_decoding if stem == DECODE else _failure_of_layers)(seed, csrc, stem)
            if failure is not None:
                return failure
            continue
        for shape, case in _runs(stem):
            try:
                check(shape, case, math, seed, csrc=csrc, only=(stem,))
                if stem == "lean_backward":
                    check_bias(shape, case, math, seed, csrc=csrc, only=(stem,))
            except (hostsim.Fault, AssertionError) as error:
                return str(error)
    return None


def _failure_of_layers(seed: int, csrc: Path, stem: str) -> str | None:
    for case in LAYER_CASES:
        try:
            with hostsim.settings(sms=SMS, shared_kib=227, seed=seed, csrc=csrc, only=(stem,)):
                layers.check(hostsim.BACKEND, case, torch.bfloat16, count=2, chained=True, seed=seed)
        except (hostsim.Fault, AssertionError) as error:
            return str(error)
    return None


def _failure_of_decoding(seed: int, csrc: Path, stem: str) -> str | None:
    torch.manual_seed(seed)
    model = make_model(6, None, 21, 2)
    for run in DECODE_RUNS:
        run = replace(run, seed=seed)
        try:
            drawn, right = decode(model, run, csrc=csrc, only=(stem,)), expected(model, run)
            torch.testing.assert_close(drawn, right, rtol=2e-5, atol=2e-5)
        except (hostsim.Fault, ValueError, AssertionError) as error:
            return str(error)
    return None


PAIRS = [(m, stem) for m in MUTATIONS for stem in m.kernels.split()]


@pytest.mark.slow
@pytest.mark.parametrize(("mutation", "stem"), PAIRS, ids=[f"{stem}-{k}-{m.what}" for k, (m, stem) in enumerate(PAIRS)])
def test_a_fault_is_found(hostsim_library, tmp_path, mutation, stem):
    csrc = mutated(mutation, stem, tmp_path)
    failure = apart(LIMIT, _failure, stem, csrc, F32 if mutation.cpp == "float" else BF16)
    assert failure is not None, f"{stem} with {mutation.new!r} for {mutation.old!r} passed everything"
    print(f"{stem}, {mutation.what}: {failure.splitlines()[0]}")


@pytest.mark.slow
@pytest.mark.parametrize("stem", [*LEAN_RUNS, *LAYERS, DECODE])
def test_without_a_fault_the_few_instances_pass(hostsim_library, tmp_path, stem):
    assert _failure(stem, _copy(stem, "bfloat_t", tmp_path), BF16) is None


@pytest.mark.slow
@pytest.mark.parametrize("math", [F32, BF16])
@pytest.mark.parametrize("stem", ["per_step", "single_block", "cooperative"])
def test_without_a_fault_the_same_runs_pass(hostsim_library, stem, math):
    assert _failure(stem, build.CSRC, math) is None


def test_every_kernel_has_mutations_of_every_class_that_concerns_it(hostsim_library):
    """And every mutation still finds the text that it changes."""
    has = {(stem, m.what) for m, stem in PAIRS}
    assert has >= {("per_step", what) for what in (ROW, TAIL)}
    assert has >= {("decode", what) for what in CLASSES}
    for direction in ("forward", "backward"):
        assert has >= {(f"cooperative_{direction}", what) for what in CLASSES}
        assert has >= {(f"lean_{direction}", what) for what in CLASSES}
        assert has >= {(f"single_block_{direction}", what) for what in CLASSES if what != ORDER}
    for m in MUTATIONS:
        file, text, mutated = m.find(build.CSRC / "cuda")
        assert file.read_text() == text != mutated, m
