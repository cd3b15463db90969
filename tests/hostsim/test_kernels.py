"""Every kernel, type and way to spread it, forward and backward, against the definition, on seeded schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.ops.arguments import OpInputs
from fastlstm.testing import accuracy, cases
from fastlstm.testing.cases import Case, make
from tests.hostsim import backend as hostsim
from tests.hostsim.shapes import (
    BF16,
    COOPERATIVE,
    F16,
    F32,
    MATHS,
    PER_STEP,
    SINGLE_BLOCK,
    SMS,
    TF32,
    check,
    dense,
    dtype_of,
    fits,
    settings,
)

ARCH_75 = ("-DFASTLSTM_ARCH=750",)  # no cp.async, no bfloat16 conversion, mma of depth 8
WIDE = [dense(3, 7, 64), dense(2, 19, 40, reset=True, initial=True), dense(2, 1, 129, reverse=True)]


def _small_chunks(monkeypatch) -> None:
    """Several launches a call: of the input side forward, of partial sums backward."""
    monkeypatch.setattr(cuda_launch, "_CHUNK_BYTES", 4000)
    monkeypatch.setattr(cuda_launch, "_PARTIAL_BYTES", 2000)


@pytest.mark.parametrize("case", cases.SHORT, ids=str)
def test_each_case_of_the_short_list_on_each_kernel(hostsim_library, monkeypatch, case):
    """Each case on each kernel, types, shapes and schedules in rotation."""
    k = cases.SHORT.index(case)
    check(PER_STEP, case, MATHS[k % 4], seed=k)
    if k % 2:
        _small_chunks(monkeypatch)
    for i, math in enumerate((MATHS[k % 4], MATHS[(k + 2) % 4])):
        for shape in (SINGLE_BLOCK[(k + i) % len(SINGLE_BLOCK)], COOPERATIVE[(k + 2 * i) % len(COOPERATIVE)]):
            if fits(shape, case, math):
                check(shape, case, math, seed=k + i, save=2 if k % 2 else 1)


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_rows_of_a_multiple_of_16_bytes_and_long_rows(hostsim_library, case):
    """Rows of a multiple of 16 bytes go through 16-byte accesses and asynchronous copies; a long one does not."""
    for i, shape in enumerate((*SINGLE_BLOCK, *COOPERATIVE)):
        for math in MATHS[i % 2 :: 2]:
            if fits(shape, case, math):
                check(shape, case, math, seed=i)


def _shorter(case: Case) -> Case:
    """65 steps meet nothing that 17 do not, and take four times as long; the short list has them."""
    if case.T != 65:
        return case
    return replace(case, id=case.id.replace("T65", "T17"), T=17, lengths=(17,) if case.packed else ())


@pytest.mark.slow
@pytest.mark.parametrize("part", range(15))  # coprime to the number of options, so every part has a bit of all
def test_all_options_crossed_with_all_sizes(hostsim_library, monkeypatch, part):
    """All options crossed with all sizes, every type, every kernel; shapes and schedules in rotation."""
    ran = set()
    for n, case in enumerate(map(_shorter, cases.FULL[part::15])):
        if n % 2:
            _small_chunks(monkeypatch)
        for i, math in enumerate(MATHS):
            at = n + 5 * i + part
            for shape in (PER_STEP, SINGLE_BLOCK[at % len(SINGLE_BLOCK)], COOPERATIVE[at % len(COOPERATIVE)]):
                if fits(shape, case, math):
                    check(shape, case, math, seed=at, save=2 if n % 2 else 1)
                    ran.add((shape, math))
        monkeypatch.undo()
    assert {(shape.kernel, math) for shape, math in ran} == {
        (k, math) for k in ("per_step", "single_block", "cooperative") for math in MATHS
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


@pytest.mark.slow
def test_the_code_for_sm_75(hostsim_library):
    """The code for sm_75: float32 and float16, without asynchronous copies."""
    for k, case in enumerate([*WIDE, *cases.SHORT]):
        for shape in (PER_STEP, SINGLE_BLOCK[k % len(SINGLE_BLOCK)], COOPERATIVE[k % len(COOPERATIVE)]):
            math = (F32, F16)[k % 2]
            if fits(shape, case, math):
                check(shape, case, math, seed=k, flags=ARCH_75, capability=75)


@pytest.mark.parametrize("shape", [SINGLE_BLOCK[0], COOPERATIVE[1]], ids=["single_block", "cooperative"])
@pytest.mark.parametrize("math", [F32, BF16])
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


@pytest.mark.parametrize(("H", "B", "shared", "kernel"), [(24, 5, 99, "single_block"), (136, 3, 60, "cooperative")])
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
