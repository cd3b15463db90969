"""The planner of the CUDA kernels, asked about GPUs that are not there: its choice fits, is the cheapest, and is explained."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import product

import pytest

from fastlstm.backends import cost_model, native
from fastlstm.backends.cuda import planner as cuda_planner
from tests.hostsim.backend import TILING

KERNELS = ("per_step", "single_block", "cooperative", "lean")
DEVICES = ("T4", "A100", "H100", "H200", "RTX 3090", "RTX 4090", "RTX 5090")
CODES = {"float32": 0, "tf32": 1, "float16": 2, "bfloat16": 3}
BYTES = {0: 4, 1: 4, 2: 2, 3: 2}
SIZES = list(product((1, 7, 64, 128, 512, 1024, 1536), (1, 16, 128)))


@pytest.fixture(scope="module")
def lib():
    if reason := native.module_unavailable():
        pytest.skip(reason)
    return cost_model.library()


def _allowed(device: cost_model.Device, code: int) -> bool:
    return device.capability >= 80 or code in (0, 2)


@pytest.mark.parametrize("name", DEVICES)
def test_what_is_chosen_fits_the_gpu(lib, name):
    device = cost_model.KNOWN[name]
    for (H, B), code in product(SIZES, CODES.values()):
        for backward, choice in enumerate(cuda_planner.choices(lib, device, code, H=H, B=B)):
            t = choice.t
            if choice.kernel == "per_step":
                continue
            assert _allowed(device, code)
            assert choice.shared_bytes <= device.shared_bytes
            assert choice.threads == (256 if choice.kernel == "lean" else 32 * t.groups * t.k_splits) <= 512
            units = t.groups * (16 if backward else 8) * t.unit_blocks // t.gate_splits
            assert units >= H
            assert 8 * t.row_tiles * t.row_blocks >= B
            assert t.unit_blocks == 1 if choice.kernel == "single_block" else choice.blocks <= device.sms
            held = (choice.register_weights + choice.shared_weights) * t.unit_blocks
            assert held >= 4 * H * H * BYTES[code]
            refitted = lib.fit(cuda_planner.gpu(lib, device), code, H, B, bool(backward), choice.kernel, t)
            assert refitted.us == choice.us


@pytest.mark.parametrize("name", DEVICES)
def test_the_time_of_a_choice_is_the_cost_models(lib, name):
    device = cost_model.KNOWN[name]
    for (H, B), code in product(SIZES[::2], CODES.values()):
        for choice in cuda_planner.choices(lib, device, code, H=H, B=B):
            predicted = lib.predict(cuda_planner.gpu(lib, device), code, choice.work)
            assert choice.us == predicted.us
            assert choice.bound == predicted.bound == max(predicted.parts, key=predicted.parts.get)


def test_the_cheapest_kernel_and_tiling_are_chosen(lib):
    device = cost_model.KNOWN["A100"]
    for (H, B), code in product(((64, 16), (512, 16), (1024, 128)), (0, 3)):
        best = cuda_planner.choices(lib, device, code, H=H, B=B)
        for kernel in KERNELS:
            try:
                other = cuda_planner.choices(lib, device, code, H=H, B=B, only=kernel)
            except ValueError:
                continue
            assert all(a.us <= b.us for a, b in zip(best, other, strict=True))
    gpu, best = cuda_planner.gpu(lib, device), cuda_planner.choices(lib, device, 3, H=512, B=16)[0]
    for name in TILING[2:6]:
        changed = lib.Tiling()
        for n in TILING:
            setattr(changed, n, getattr(best.t, n))
        setattr(changed, name, 2 * getattr(best.t, name))
        with suppress(ValueError):  # does not fit
            assert lib.fit(gpu, 3, 512, 16, False, best.kernel, changed).us >= best.us


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("H", "B"), [(64, 16), (512, 1), (512, 64), (1024, 128), (1536, 128)])
def test_all_tilings_come_cheapest_first(lib, H, B, backward):
    device = cost_model.KNOWN["H100"]
    for code in CODES.values():
        choices = cuda_planner.tilings(lib, device, code, H=H, B=B, backward=backward)
        assert [c.us for c in choices] == sorted(c.us for c in choices)
        waiting = {"lean", "single_block" if H <= 128 else "cooperative", "cooperative"}
        assert {c.kernel for c in choices} <= waiting - ({"lean"} if code == 0 else set())
        assert all(c.t.unit_blocks == 1 for c in choices if c.kernel == "single_block")
        assert all(c.t.unit_blocks > 1 for c in choices if c.kernel == "cooperative")
        assert len({(c.kernel, *(getattr(c.t, n) for n in TILING)) for c in choices}) == len(choices)
        best = cuda_planner.choices(lib, device, code, H=H, B=B)[backward]
        if best.kernel == "per_step":
            assert all(c.us >= best.us for c in choices)
        else:
            assert (choices[0].us, choices[0].work.l2_rounds) == (best.us, best.work.l2_rounds)


def test_work_counts_what_a_warp_waits_for(lib):
    """H 1024 in bfloat16 has 32 spans forward and 128 backward: what a block of known tiling does, counted by hand."""

    def work(backward, **values):
        tiling = lib.Tiling()
        for name in TILING:
            setattr(tiling, name, values.get(name, 1))
        gpu = cuda_planner.gpu(lib, cost_model.KNOWN["H100"])
        return lib.fit(gpu, 3, 1024, 16, backward, "cooperative", tiling).work.as_dict()

    ahead = work(False, unit_blocks=64, groups=2, k_splits=4, row_tiles=2, phase=2)
    assert ahead["l2_rounds"] == 2  # 8 spans a warp, all on their way together, for two row tiles
    assert (ahead["register_spans"], ahead["kept_spans"], ahead["partial_sums"], ahead["barriers"]) == (16, 0, 2, 1)
    assert ahead["grid_waits"] == 1
    assert (ahead["steps"], ahead["forward_cells"], ahead["backward_cells"]) == (1, 0.5, 0)  # 4 warps share two tiles
    alone = work(False, unit_blocks=64, groups=2, row_tiles=2)
    assert (alone["l2_rounds"], alone["kept_spans"], alone["partial_sums"], alone["barriers"]) == (8, 48, 0, 0)
    back = work(True, unit_blocks=128, groups=2, k_splits=4, row_tiles=2, phase=2, gate_splits=4)
    assert back["l2_rounds"] == 3  # 32 spans shared by 4 warps, two row tiles, and one round of partial sums
    assert back["grid_waits"] == 2
    assert back["backward_cells"] == 0.5  # a block runs a fourth of its 32 columns' cells, 8 units; 4 warps, two tiles


def test_every_part_is_linear_in_its_constant(lib):
    device = cost_model.KNOWN["H100"]
    free = replace(device, cost=tuple((name, 0.0) for name, *_ in lib.constants()))
    assert cuda_planner.gpu(lib, free).cost.l2_clocks == 0
    gpu, choice = cuda_planner.gpu(lib, device), cuda_planner.choices(lib, device, 3, H=512, B=16)[0]
    parts = lib.predict(gpu, 3, choice.work).parts
    only_hbm = lib.predict(cuda_planner.gpu(lib, free), 3, choice.work)
    assert only_hbm.us == only_hbm.parts["HBM"] == parts["HBM"]
    for name, value, part, _ in lib.constants():  # every part is linear in its constant
        doubled = replace(device, cost=((name, 2 * value),))
        assert lib.predict(cuda_planner.gpu(lib, doubled), 3, choice.work).parts[part] == pytest.approx(2 * parts[part])


def test_unknown_devices_borrow_from_their_generation(lib):
    ada = cost_model.known("NVIDIA RTX 4000 SFF Ada", 89, 48, 101376, lib)
    assert (ada.sms, ada.shared_bytes, ada.half) == (48, 101376, cost_model.KNOWN["RTX 4090"].half)
    assert cost_model.known("NVIDIA H200", 90, 132, 232448, lib).hbm_gbs == 4800
    future = cost_model.known("NVIDIA Next", 130, 200, 232448, lib)
    assert future.half == cost_model.KNOWN["RTX 5090"].half
    small = cost_model.known("NVIDIA RTX A1000", 86, 18, 101376, lib)  # has "A100" in its name
    assert (small.half, small.ghz) == (cost_model.KNOWN["RTX 3090"].half, cost_model.KNOWN["RTX 3090"].ghz)
    assert cost_model.known("NVIDIA A100-SXM4-80GB", 80, 108, 166912, lib).half == cost_model.KNOWN["A100"].half
    assert cuda_planner.choices(lib, future, 3, H=1024, B=64)[0].kernel == "lean"


def test_size_and_type_decide_on_the_kernel(lib):
    """Small H stays in a block, larger H on the chip, what is too large nowhere; `lean` takes what tensor cores can."""
    h100 = cost_model.KNOWN["H100"]

    def kernels(H, B=16, code=3, device=h100):
        return [c.kernel for c in cuda_planner.choices(lib, device, code, H=H, B=B)]

    assert kernels(60) == ["single_block", "single_block"]
    assert kernels(64) == kernels(768) == kernels(1024) == kernels(768, code=1) == ["lean", "lean"]
    assert kernels(1004) == kernels(1024, code=0) == ["cooperative", "cooperative"]
    assert kernels(16384) == ["per_step", "per_step"]
    assert kernels(256, code=3, device=cost_model.KNOWN["T4"]) == ["per_step", "per_step"]
    assert kernels(64, code=2, device=cost_model.KNOWN["T4"]) == ["single_block", "single_block"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"only": "single_block", "H": 1024}, "1024 units do not fit one block|does not stay in one block"),
        ({"only": "single_block", "H": 128, "code": 0}, "KiB of shared memory, a block gets"),
        ({"only": "cooperative", "H": 4}, "one block has all 4 units"),
        ({"only": "single_block", "H": 32, "projected": True}, "a projection goes through per_step"),
        ({"only": "single_block", "H": 32, "code": 3, "device": "T4"}, "bfloat16 products need compute capability 8.0"),
        ({"only": "single_block", "H": 32, "code": 1, "device": "T4"}, "TF32 products need compute capability 8.0"),
        ({"only": "tiles", "H": 32}, "kernel is 'tiles', expected per_step, single_block, cooperative or lean"),
        ({"only": "lean", "H": 100}, "H 100 is not a multiple of 8"),
        ({"only": "lean", "H": 102, "code": 1}, "H 102 is not a multiple of 4"),
        ({"only": "lean", "H": 512, "code": 0}, "float32 products do not run on tensor cores"),
        ({"only": "lean", "H": 512, "code": 2, "device": "T4"}, "lean needs compute capability 8.0, this is 7.5"),
        ({"only": "lean", "H": 512, "projected": True}, "a projection goes through per_step"),
        ({"only": "lean", "H": 16384}, "there is no kernel of 4 groups, 2 tiles and 1 parts of the gates for H 16384"),
        ({"only": "single_block", "H": 32, "device": "old"}, "compute capability 7.0, at least 7.5 is needed"),
    ],
)
def test_a_kernel_that_does_not_fit_is_refused_with_its_reason(lib, options, reason):
    options = {"B": 16, "code": 3, "device": "H100", **options}
    device, code = options.pop("device"), options.pop("code")
    gpu = replace(cost_model.KNOWN["T4"], capability=70) if device == "old" else cost_model.KNOWN[device]
    with pytest.raises(ValueError, match=reason):
        cuda_planner.choices(lib, gpu, code, **options)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"groups": 17}, "a block has at most 16 warps"),
        ({"k_splits": 0}, "a block has at most 16 warps"),
        ({"phase": 2}, "a phase of 2 of 1 row tiles with 1 splits"),
        ({"gate_splits": 2}, "do not divide into 2 parts"),
        ({"unit_blocks": 3}, "3 x 1 blocks do not cover H 64 and B 8"),
        ({"groups": 1, "unit_blocks": 8}, "W_hh of H 64 does not stay in one block"),
    ],
)
def test_a_tiling_that_does_not_fit_is_refused_with_its_reason(lib, changes, reason):
    tiling = lib.Tiling()
    for name, value in zip(TILING, (1, 1, 8, 1, 1, 1, 1), strict=True):
        setattr(tiling, name, changes.get(name, value))
    with pytest.raises(ValueError, match=reason):
        lib.fit(cuda_planner.gpu(lib, cost_model.KNOWN["H100"]), 3, 64, 8, False, "single_block", tiling)


def test_more_waiting_blocks_than_multiprocessors_are_refused(lib):
    tiling = lib.Tiling()
    for name, value in zip(TILING, (64, 4, 1, 1, 1, 1, 1), strict=True):
        setattr(tiling, name, value)
    with pytest.raises(ValueError, match="256 blocks that wait for each other need as many multiprocessors"):
        lib.fit(cuda_planner.gpu(lib, cost_model.KNOWN["H100"]), 3, 512, 32, False, "cooperative", tiling)


@pytest.mark.parametrize(
    ("H", "kernel"), [(60, "single_block"), (764, "cooperative"), (768, "lean"), (16384, "per_step")]
)
def test_the_sentence_names_kernel_time_bound_and_tiling(lib, H, kernel):
    device = cost_model.KNOWN["H100"]
    lines = [cuda_planner.sentence(c, device) for c in cuda_planner.choices(lib, device, 3, H=H, B=16)]
    for line in lines:
        assert line.startswith(f"{kernel}: ")
        words = ["µs a step predicted on H100", "bound by", "W_hh ("]
        if kernel != "per_step":
            words += ["blocks of", "threads", "KiB", "over units x", "group", "of 8 sequences"]
        assert all(word in line for word in words), line


def _fit(lib, kernel, numbers, H, B, code=3, backward=False, device="H100"):
    tiling = lib.Tiling()
    for name, value in zip(TILING, numbers, strict=True):
        setattr(tiling, name, value)
    known = cost_model.KNOWN[device] if isinstance(device, str) else device
    return lib.fit(cuda_planner.gpu(lib, known), code, H, B, backward, kernel, tiling)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["A100", "H100", "RTX 4090"])
def test_every_lean_tiling_that_is_offered_fits(lib, name, backward):
    device, seen = cost_model.KNOWN[name], set()
    for (H, B), code in product(product((8, 40, 128, 512, 1000, 1536), (1, 9, 64, 250)), (1, 2, 3)):
        for choice in cuda_planner.tilings(lib, device, code, H=H, B=B, backward=backward):
            if choice.kernel != "lean":
                continue
            t = choice.t
            seen.add((t.groups, t.phase, t.gate_splits))
            assert (choice.threads, t.k_splits) == (256, 8)
            assert choice.blocks == t.unit_blocks * t.row_blocks <= device.sms
            assert choice.shared_bytes <= device.shared_bytes
            assert 8 * t.row_tiles * t.row_blocks >= B
            assert t.row_tiles % t.phase == 0
            assert t.row_tiles // t.phase <= 16
            assert t.unit_blocks // t.gate_splits * t.groups * (16 if backward else 8) >= H
            assert choice.work.gathers == (2 if t.gate_splits > 1 else 1)
            assert choice.work.passes > 0
            numbers = [getattr(t, n) for n in TILING]
            assert _fit(lib, "lean", numbers, H, B, code, backward, name).us == choice.us
    assert seen == ({(1, 1, 1), (4, 1, 4)} if backward else {(1, 1, 1), (2, 1, 1), (2, 2, 1)})


@pytest.mark.parametrize(
    ("numbers", "H", "B", "options", "reason"),
    [
        ((64, 3, 1, 8, 1, 1, 1), 512, 24, {}, "192 blocks that wait for each other need as many multiprocessors"),
        ((64, 1, 1, 8, 1, 1, 1), 512, 16, {}, "64 x 1 blocks do not cover H 512 and B 16"),
        ((63, 1, 1, 8, 1, 1, 1), 512, 8, {}, "63 x 1 blocks do not cover H 512 and B 8"),
        ((64, 1, 1, 4, 1, 1, 1), 512, 8, {}, "there is no kernel of 1 groups, 1 tiles and 1 parts"),
        ((64, 1, 1, 8, 2, 2, 1), 512, 16, {}, "there is no kernel of 1 groups, 2 tiles and 1 parts"),
        ((16, 1, 4, 8, 1, 1, 1), 512, 8, {}, "there is no kernel of 4 groups, 1 tiles and 1 parts"),
        ((32, 1, 2, 8, 1, 1, 2), 512, 8, {"backward": True}, "there is no kernel of 2 groups, 1 tiles and 2 parts"),
        ((32, 1, 2, 8, 3, 2, 1), 512, 24, {}, "32 x 1 blocks do not cover H 512 and B 24"),
        ((32, 1, 2, 8, 4, 2, 1), 512, 32, {}, "KiB of shared memory, a block gets 64"),
    ],
)
def test_a_lean_tiling_that_does_not_fit_is_refused_with_its_reason(lib, numbers, H, B, options, reason):
    device = replace(cost_model.KNOWN["H100"], shared_kib=64)
    with pytest.raises(ValueError, match=reason):
        _fit(lib, "lean", numbers, H, B, device=device, **options)


@pytest.mark.parametrize("B", [1, 16, 64, 128, 256])
@pytest.mark.parametrize("H", [512, 1024])
@pytest.mark.parametrize("name", ["H100", "H200"])
def test_lean_is_the_pick_for_usual_sizes_and_other_kernels_can_be_forced(lib, name, H, B):
    device = cost_model.KNOWN[name]
    picks = cuda_planner.choices(lib, device, 3, H=H, B=B)
    for pick in picks:
        assert pick.kernel == "lean"
        assert 2 <= pick.blocks <= device.sms
    for kernel in ("per_step", "cooperative", "lean"):
        forced = cuda_planner.choices(lib, device, 3, H=H, B=B, only=kernel)
        assert [choice.kernel for choice in forced] == [kernel, kernel]
        assert all(a.us >= b.us for a, b in zip(forced, picks, strict=True))
    others = cuda_planner.choices(lib, device, 3, H=H, B=B, without=frozenset({"lean"}))
    assert all(choice.kernel in ("cooperative", "per_step") for choice in others)


def test_what_a_lean_step_waits_for_is_counted(lib):
    """By hand: 16 sequences of H 1024 in bfloat16 are 32 KiB of h, or 128 KiB of gradients of gates."""
    work = _fit(lib, "lean", (128, 1, 1, 8, 2, 1, 1), 1024, 16).work
    assert (work.blocks, work.gathers, work.gathered_kib, work.grid_waits, work.l2_rounds) == (128, 1, 32, 0, 0)
    assert 1 <= work.passes < 2  # the second pass hides behind the hand-over of the first
    back = _fit(lib, "lean", (64, 1, 1, 8, 2, 1, 1), 1024, 16, backward=True).work
    assert (back.gathers, back.gathered_kib) == (1, 128)
    parts = _fit(lib, "lean", (64, 1, 4, 8, 2, 1, 4), 1024, 16, backward=True).work
    assert (parts.gathers, parts.gathered_kib) == (2, 128 / 4 + 16 * 4 * 16 * 4 / 1024)


@pytest.mark.parametrize(
    ("numbers", "B", "words"),
    [
        ((32, 4, 2, 8, 2, 1, 1), 64, "8 warps, 2 groups, 1 tile of 8 sequences in 2 passes)"),
        ((64, 2, 1, 8, 1, 1, 1), 16, "8 warps, 1 group, 1 tile of 8 sequences in 1 pass)"),
        ((32, 2, 2, 8, 4, 2, 1), 64, "8 warps, 2 groups, 2 tiles of 8 sequences in 2 passes)"),
        ((32, 1, 4, 8, 2, 1, 4), 16, "8 warps, 4 groups, 1 tile of 8 sequences in 2 passes, gates in 4 parts)"),
    ],
)
def test_the_sentence_of_lean_names_groups_tiles_and_passes(lib, numbers, B, words):
    choice = _fit(lib, "lean", numbers, 512, B, backward=numbers[-1] > 1)
    line = cuda_planner.sentence(choice, cost_model.KNOWN["H100"])
    assert f"{numbers[0]} over units x {numbers[1]} over rows; {words}" in line
    weights = choice.register_weights + choice.shared_weights
    assert weights * choice.t.unit_blocks == 4 * 512 * 512 * 2  # every block has its share once
    assert "W_hh (2048 KiB) fits" in line
    assert "lean: " in line
    assert "bound by" in line
