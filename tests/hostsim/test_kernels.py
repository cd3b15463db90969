"""Every kernel, type and way to spread it, forward and backward, against the definition, on seeded schedules."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from fastlstm.ops.arguments import OpInputs
from fastlstm.testing import accuracy, cases
from fastlstm.testing.cases import Case, make
from tests.hostsim import backend as hostsim
from tests.hostsim.shapes import (
    BF16,
    COOPERATIVE,
    F16,
    F32,
    LEAN,
    LEAN_MATHS,
    MATHS,
    PER_STEP,
    SINGLE_BLOCK,
    SMS,
    TF32,
    check,
    check_bias,
    dense,
    dtype_of,
    even,
    fits,
    packed,
    settings,
)

ARCH_75 = ("-DFASTLSTM_ARCH=750", *hostsim.FEW)  # no cp.async, no bfloat16 conversion, mma of depth 8
WIDE = [dense(3, 7, 64), dense(2, 19, 40, reset=True, initial=True), dense(2, 1, 129, reverse=True)]


def _small_chunks(monkeypatch, T: int) -> None:
    """Several launches a call of T steps: of the input side forward, of partial sums backward."""
    monkeypatch.setattr(cuda_launch, "_CHUNK_BYTES", 4000)
    monkeypatch.setattr(cuda_launch, "_CHUNK_STEPS", -(-T // 3))
    monkeypatch.setattr(launch_backward, "_PARTIAL_BYTES", 2000)


def _shorter(case: Case) -> Case:
    """65 steps meet nothing that 17 do not, and take four times as long; the short list has them."""
    if case.T != 65:
        return case
    return replace(case, id=case.id.replace("T65", "T17"), T=17, lengths=(17,) if case.packed else ())


@pytest.mark.parametrize("case", cases.SHORT, ids=str)
def test_each_case_of_the_short_list_on_each_kernel(hostsim_library, monkeypatch, case):
    """Each case on each kernel, types, shapes and schedules in rotation."""
    k = cases.SHORT.index(case)
    check(PER_STEP, case, MATHS[k % 4], seed=k)
    if k % 2:
        _small_chunks(monkeypatch, case.T)
    for i, math in enumerate((MATHS[k % 4], MATHS[(k + 2) % 4])):
        for shape in (SINGLE_BLOCK[(k + i) % len(SINGLE_BLOCK)], COOPERATIVE[(k + 2 * i) % len(COOPERATIVE)]):
            if fits(shape, case, math):
                check(shape, case, math, seed=k + i, save=2 if k % 2 else 1)
    shape, case = LEAN[k % len(LEAN)], even(_shorter(case))
    check(shape, case, LEAN_MATHS[k % 3], seed=k, save=2 if k % 2 else 1)


# Widths that `lean` takes: of one warp, and of all with several spans each, of which some have no numbers
LEAN_CASES = [
    dense(4, 9, 8, initial=True),
    dense(3, 1, 16, reverse=True, initial=True),
    dense(5, 7, 40, reset=True, initial=True),
    packed(tuple(1 + b * 5 % 4 for b in range(17)), 40, reset=True, reverse=True, initial=True),
    dense(3, 17, 24, ids=True),
    dense(3, 33, 16, initial=True),
    packed(tuple(1 + b * 7 % 3 for b in range(33)), 8, reset=True),
]
LEAN_WIDE = [
    packed((3, 2, 3), 136, ids=True, reverse=True, initial=True),
    dense(2, 3, 264, reset=True, reverse=True, initial=True),
    packed((2, 1, 2, 1, 2, 2, 1, 1, 2), 264, initial=True),
]


def _on_each_shape(monkeypatch, case: Case, k: int, shapes, **other) -> None:
    """Types, schedules, what is saved and the launches of a call in rotation."""
    for i, shape in enumerate(shapes):
        at = k + i
        if at % 2:
            _small_chunks(monkeypatch, case.T)
        if fits(shape, case, LEAN_MATHS[at % 3], **other):
            check(shape, case, LEAN_MATHS[at % 3], seed=at, save=2 if (k // 2 + i) % 2 else 1, **other)
        monkeypatch.undo()


@pytest.mark.parametrize("case", LEAN_CASES, ids=str)
def test_each_case_of_lean_on_each_of_its_shapes(hostsim_library, monkeypatch, case):
    _on_each_shape(monkeypatch, case, LEAN_CASES.index(case), LEAN)


@pytest.mark.parametrize("case", LEAN_WIDE, ids=str)
def test_several_spans_a_warp(hostsim_library, monkeypatch, case):
    k = LEAN_WIDE.index(case)
    _on_each_shape(monkeypatch, case, k, [LEAN[(1, 3, 4)[k]]])


@pytest.mark.slow
@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("case", LEAN_WIDE, ids=str)
def test_several_spans_a_warp_on_every_shape(hostsim_library, monkeypatch, case, k):
    _on_each_shape(monkeypatch, case, k, LEAN, flags=hostsim.SOME)


def test_lean_adds_up_the_gates_gradients_of_each_row_block(hostsim_library, monkeypatch):
    """The gradient of a bias, in one launch and in several."""
    for i, (case, shape) in enumerate(product(LEAN_CASES[3:5], LEAN[1:4])):
        if i % 2:
            _small_chunks(monkeypatch, case.T)
        check_bias(shape, case, LEAN_MATHS[i % 3], seed=i)
        monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("save", [1, 2])
@pytest.mark.parametrize(
    ("shape", "case"),
    [
        (LEAN[2], dense(2, 3, 520, initial=True)),
        (LEAN[2], packed((2, 1, 2), 520, reset=True, reverse=True, initial=True)),
    ],
    ids=["dense", "rows"],
)
def test_lean_with_weights_in_shared_memory(hostsim_library, shape, case, save):
    """What a lane cannot keep in registers: half of its spans forward (of two groups) and backward (of four parts)."""
    assert fits(shape, case, TF32, flags=hostsim.SOME)
    check(shape, case, TF32, seed=save, save=save, flags=hostsim.SOME)


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_rows_of_a_multiple_of_16_bytes_and_long_rows(hostsim_library, case):
    """Rows of a multiple of 16 bytes go through 16-byte accesses and asynchronous copies; a long one does not."""
    for i, shape in enumerate((*SINGLE_BLOCK, *COOPERATIVE)):
        for math in MATHS[i % 2 :: 2]:
            if fits(shape, case, math):
                check(shape, case, math, seed=i)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(15))  # coprime to the number of options, so every part has a bit of all
def test_all_options_crossed_with_all_sizes(hostsim_library, monkeypatch, part):
    """All options crossed with all sizes, every type, every kernel; shapes and schedules in rotation."""
    ran = set()
    for n, case in enumerate(map(_shorter, cases.FULL[part::15])):
        if n % 2:
            _small_chunks(monkeypatch, case.T)
        for i, math in enumerate(MATHS):
            at = n + 5 * i + part
            for shape in (PER_STEP, SINGLE_BLOCK[at % len(SINGLE_BLOCK)], COOPERATIVE[at % len(COOPERATIVE)]):
                if fits(shape, case, math):
                    check(shape, case, math, seed=at, save=2 if n % 2 else 1)
                    ran.add((shape, math))
            shape = LEAN[at % len(LEAN)]
            if math != F32 and not case.projection and fits(shape, even(case), math):
                check(shape, even(case), math, seed=at, save=2 if n % 2 else 1)
                ran.add((shape, math))
        monkeypatch.undo()
    assert {(shape.kernel, math) for shape, math in ran} == {
        *((k, math) for k in ("per_step", "single_block", "cooperative") for math in MATHS),
        *(("lean", math) for math in LEAN_MATHS),
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_every_shape_on_every_schedule(hostsim_library, seed):
    """Every shape under every policy of scheduling, twice, on a case with all that a step can meet."""
    case = next(c for c in cases.FULL if c.packed and c.reverse and c.reset and c.initial and not c.ids and c.B == 65)
    for shape in (PER_STEP, *SINGLE_BLOCK, *COOPERATIVE):
        for math in (F32, BF16):
            if fits(shape, case, math):
                check(shape, case, math, seed)
    for shape in LEAN:
        for math in (TF32, BF16):
            check(shape, even(case), math, seed)


@pytest.mark.slow
def test_the_code_for_sm_75(hostsim_library):
    """The code for sm_75: float32 and float16, without asynchronous copies."""
    for k, case in enumerate([*WIDE, *cases.SHORT]):
        for shape in (PER_STEP, SINGLE_BLOCK[k % len(SINGLE_BLOCK)], COOPERATIVE[k % len(COOPERATIVE)]):
            math = (F32, F16)[k % 2]
            if fits(shape, case, math):
                check(shape, case, math, seed=k, flags=ARCH_75, capability=75)


@pytest.mark.parametrize(
    ("shape", "math"),
    [
        *product((SINGLE_BLOCK[0], COOPERATIVE[1]), (F32, BF16)),
        *product(LEAN[1:4:2], (TF32, BF16)),
    ],
    ids=lambda value: getattr(value, "kernel", value),
)
def test_what_is_saved_and_the_schedule_change_no_bit(hostsim_library, shape, math):
    """save = 0, 1 and 2 give the same bits, and so does another schedule."""
    case = dense(5, 9, 24, initial=True)
    outputs = []
    for save, seed in ((1, 0), (0, 0), (2, 0), (1, 1), (1, 2), (1, 3)):
        with settings(shape, case, math, seed):
            h, _, _, h_n, c_n = hostsim.BACKEND.forward(OpInputs(*make(case, dtype_of(math)), False, save))
        outputs.append((h, h_n, c_n))
    for other in outputs[1:]:
        assert all(a.equal(b) for a, b in zip(outputs[0], other, strict=True))


@pytest.mark.parametrize(
    ("H", "B", "shared", "kernel"), [(21, 5, 99, "single_block"), (136, 3, 60, "cooperative"), (24, 5, 99, "lean")]
)
def test_without_a_forced_kernel_the_planners_choice_runs(hostsim_library, H, B, shared, kernel):
    """Without a forced kernel the planner's own choice runs; `plan` says which, and all about it."""
    case = dense(3, B, H, initial=True)
    with hostsim.settings(sms=SMS, shared_kib=shared):
        v = make(case, dtype_of(BF16))
        line = hostsim.BACKEND.describe(OpInputs(*v, False, 1).spec())
        accuracy.check_backend(hostsim.BACKEND, case, dtype_of(BF16))
    assert line.startswith(f"hostsim: {kernel}: ")
    for word in ("blocks of", "registers", "KiB", "warps", "µs a step predicted", "bound by"):
        assert word in line


def test_tf32_is_not_float32(hostsim_library):
    """TF32 rounds products: more error than float32, less than 4 eps of TF32 (`check`)."""
    case = dense(7, 3, 24, initial=True)
    h = {}
    for math in (F32, TF32):
        with settings(SINGLE_BLOCK[0], case, math, 0):
            h[math] = hostsim.BACKEND.forward(OpInputs(*make(case, dtype_of(math)), False, 1))[0]
    difference = (h[F32] - h[TF32]).norm() / h[F32].norm()
    assert 1e-5 < difference < 1e-3
