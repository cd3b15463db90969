"""The host simulation by itself: right kernels pass on every schedule, wrong ones are named with block, thread and line."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hostsim.report import with_source

SEEDS = range(8)  # every scheduling policy twice


class Simulation:
    """A fake device with two tensors: a, read-only, and b."""

    def __init__(self, library):
        self.library = library

    def __call__(
        self, name, *, grid=1, block=32, shared=4096, cooperative=False, a=None, b=None, n=None, stream=0, sms=4
    ):
        lib = self.library
        lib.forget()
        lib.set_device(sms, 227 << 10, 228 << 10, 2048)
        n = block if n is None else n
        self.a = torch.arange(1, block * grid + 1, dtype=torch.int32) if a is None else a
        self.b = torch.zeros(max(block * grid, 8), dtype=torch.int32) if b is None else b
        self.register()
        self.launch(name, grid, block, shared, cooperative, stream, n)
        return self.b

    def register(self):
        self.library.memory(self.a.data_ptr(), 4 * self.a.numel(), "a", False, True)
        self.library.memory(self.b.data_ptr(), 4 * self.b.numel(), "b", True, True)

    def launch(self, name, grid, block, shared, cooperative, stream, n):
        try:
            self.library.run(name, grid, block, shared, cooperative, stream, self.a.data_ptr(), self.b.data_ptr(), n)
        except RuntimeError as error:
            raise RuntimeError(with_source(str(error), self.library.__file__)) from None


@pytest.fixture
def run(library):
    simulation = Simulation(library)
    yield simulation
    library.forget()
    library.seed(0)


@pytest.mark.parametrize("seed", SEEDS)
def test_right_kernels_pass(run, seed):
    run.library.seed(seed)
    count = torch.arange(1, 65, dtype=torch.int32)
    assert run("reverse", block=64).tolist() == count.flip(0).tolist()
    assert run("butterfly", block=64).tolist() == [count[:32].sum()] * 32 + [count[32:].sum()] * 32
    assert run("warp_neighbour", block=64).tolist() == count.view(-1, 2).flip(1).reshape(-1).tolist()
    assert run("copy_waited", block=64).tolist() == count.tolist()
    a, b = torch.arange(128, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    assert run("copies_vectors", block=32, a=a, b=b).tolist() == a.tolist()
    assert run("relay", grid=7)[:7].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert run("message_released", grid=2)[:3].tolist() == [1, 7, 7]
    assert run("add_one", grid=3, n=70).tolist() == [1] * 70 + [0] * 26


FAULTS = {
    "reverse_without_barrier": ({"block": 64}, r"(race|uninitialised): .*block 0 thread"),
    "off_by_one": ({"n": 31, "b": torch.zeros(31)}, r"out of bounds: (reads|writes) 4 bytes.*thread 31"),
    "shared_overrun": (
        {"shared": 128},
        r"out of bounds: writes.*'shared memory' of 128 bytes, at offset 128.*thread 31",
    ),
    "uninitialised": ({}, r"uninitialised: reads 'shared memory' at byte 20.*kernels.cpp:\d+.*thread 5"),
    "writes_input": ({}, r"read-only: writes 'a'"),
    "write_after_read": ({}, r"race: (reads|writes) 'shared memory'.*block 0 thread \d+ (read|wrote).*kernels.cpp:\d+"),
    "half_barrier": ({"block": 64}, r"divergent barrier: .*kernels.cpp:\d+.*half_barrier, block 0 thread \d+"),
    "two_barriers": ({}, r"divergent barrier: __syncthreads at kernels.cpp:\d+ while .*kernels.cpp:\d+"),
    "partial_shuffle": ({}, r"divergent warp: .*__shfl_sync at kernels.cpp:\d+"),
    "warp_neighbour_without_sync": ({}, r"(race|uninitialised): .*shared memory"),
    "relay_with_plain_store": ({"grid": 4}, r"race: .*'b'.*block \d thread 0"),
    "message_relaxed": ({"grid": 2}, r"race: reads 'b' at byte 4, which block 0 thread 0 wrote"),
    "wait_for_nobody": (
        {},
        r"deadlock: .*\n.*wait_for_nobody, block 0, in .* at kernels.cpp:\d+: 32 threads, thread 0",
    ),
    "copy_not_waited": ({}, r"unfinished copy: reads 'shared memory'"),
    "unknown_instruction": ({}, r"PTX: .*popc"),
    "misaligned": ({}, r"misaligned: ld.relaxed.gpu.global.v2.b32"),
    "misaligned_vector": ({}, r"misaligned: a vector access of 16 bytes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found_on_every_schedule(run, name):
    options, message = FAULTS[name]
    for seed in SEEDS:
        run.library.seed(seed)
        with pytest.raises(RuntimeError, match=message):
            run(name, **options)
    run("reverse", block=64)  # a fault leaves nothing behind


def test_a_launch_past_the_limits_of_the_device_is_refused(run):
    with pytest.raises(RuntimeError, match="cooperative grid of 9 blocks does not fit 4 multiprocessors"):
        run("relay", grid=9, cooperative=True, shared=100_000)
    with pytest.raises(RuntimeError, match="the device gives a block 232448"):
        run("reverse", shared=300_000)
    run("relay", grid=8, cooperative=True, shared=100_000)


def _mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_stacks_are_freed_after_a_launch(run):
    """Each is two mappings, and a process that has no mapping left hangs when it starts a thread."""
    run("add_one", grid=1, n=32)
    before = _mappings()
    run("add_one", grid=8, block=1024, n=8192)  # 8192 threads at once
    assert _mappings() - before < 1024
    assert run("add_one", grid=2, n=40).tolist() == [1] * 40 + [0] * 24


def test_no_room_for_stacks_is_an_error(run):
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    in_use = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + (64 << 20), limits[1]))
    try:
        with pytest.raises(RuntimeError, match=r"no room for the stack of thread \d+; launch fewer threads"):
            run("add_one", grid=8, block=1024, n=8192)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    assert run("add_one", grid=1, n=32)[:32].tolist() == [1] * 32


def test_grid_that_spins_must_be_resident(run):
    """Blocks wait for the block before them; when the first ones get no room because the last ones hold it, all hang."""
    with pytest.raises(RuntimeError, match=r"deadlock: [\s\S]*blocks wait for room"):
        run("wait_for_nobody", grid=9, shared=100_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_launches_at_once_race_unless_they_share_a_stream(run, library, seed):
    library.seed(seed)
    run("relay", grid=1)
    for streams, fails in (((1, 1), False), ((1, 2), True)):
        run.b.zero_()
        library.hold()
        for stream in streams:
            run.launch("add_one", 1, 32, 0, False, stream, 8)
        if fails:  # both add to the same words
            with pytest.raises(RuntimeError, match=r"race: .*'b'.*of another launch"):
                library.release()
        else:
            library.release()
            assert run.b[:8].tolist() == [2] * 8


@pytest.mark.parametrize("seed", SEEDS)
def test_two_cooperative_grids_at_once_take_turns(run, library, seed):
    library.seed(seed)
    run("relay", grid=1, b=torch.zeros(16, dtype=torch.int32))
    run.b.zero_()
    other = torch.zeros(16, dtype=torch.int32)
    library.memory(other.data_ptr(), 64, "other", True, True)
    library.hold()
    run.launch("relay", 5, 32, 100_000, True, 1, 0)
    run.b, first = other, run.b
    run.launch("relay", 5, 32, 100_000, True, 2, 0)
    library.release()
    assert first[:5].tolist() == other[:5].tolist() == [2, 3, 4, 5, 6]


# The PTX ISA manual's formulas, typed from its text ("Matrix Fragments for mma.m16n8k16 with floating point type" and
# the sections for m16n8k8): row and column of element i of a fragment, groupID = lane >> 2, in = lane % 4.
def a16(group, t, i):
    row = group if i in (0, 1, 4, 5) else group + 8
    return row, t * 2 + (i & 1) if i < 4 else t * 2 + (i & 1) + 8


def b16(group, t, i):
    return (t * 2 + (i & 1) if i < 2 else t * 2 + (i & 1) + 8), group


def c(group, t, i):
    return (group if i < 2 else group + 8), t * 2 + (i & 1)


def a8(group, t, i):
    return (group if i < 2 else group + 8), t * 2 + (i & 1)


def b8(group, t, i):
    return t * 2 + i, group


def a_tf32(group, t, i):
    return (group if i in (0, 2) else group + 8), (t if i < 2 else t + 4)


def b_tf32(group, t, i):
    return (t if i == 0 else t + 4), group


LAYOUTS = {
    "m16n8k16.16": {"a": (a16, 8), "b": (b16, 4), "c": (c, 4)},
    "m16n8k8.16": {"a": (a8, 4), "b": (b8, 2), "c": (c, 4)},
    "m16n8k8.tf32": {"a": (a_tf32, 4), "b": (b_tf32, 2), "c": (c, 4)},
}


@pytest.mark.parametrize("shape", LAYOUTS)
def test_fragment_tables_are_the_manuals(library, shape):
    for matrix, (formula, elements) in LAYOUTS[shape].items():
        for lane in range(32):
            for i in range(elements):
                assert library.mma_position(shape, matrix, lane, i) == formula(lane >> 2, lane % 4, i), (
                    matrix,
                    lane,
                    i,
                )


def _words(values: torch.Tensor) -> np.ndarray:
    """Pairs of 16-bit numbers (or single floats) as 32-bit words."""
    return values.contiguous().view(torch.int32).numpy()


@pytest.mark.parametrize(("type_code", "shape", "dtype"), [
    (0, "m16n8k16.16", torch.float16),
    (1, "m16n8k16.16", torch.bfloat16),
    (2, "m16n8k8.16", torch.float16),
    (3, "m16n8k8.tf32", torch.float32),
])  # fmt: skip
def test_mma_multiplies(run, type_code, shape, dtype):
    k = 16 if "k16" in shape else 8
    gen = torch.Generator().manual_seed(type_code)
    a, b = torch.randn(16, k, generator=gen).to(dtype), torch.randn(k, 8, generator=gen).to(dtype)
    c_in = torch.randn(16, 8, generator=gen)
    words = np.zeros((32, 10), np.int32)
    for lane in range(32):
        group, t = lane >> 2, lane % 4
        for column, matrix, values in ((0, "a", a), (4, "b", b), (6, "c", c_in)):
            formula, elements = LAYOUTS[shape][matrix]
            picked = _words(torch.stack([values[formula(group, t, i)] for i in range(elements)]))
            words[lane, column : column + len(picked)] = picked
    out = run("multiply", a=torch.from_numpy(words.reshape(-1)), b=torch.zeros(128, dtype=torch.int32), n=type_code)
    result = out.view(torch.float32).view(32, 4)
    operands = [(v.view(torch.int32) & ~0x1FFF).view(torch.float32) if type_code == 3 else v for v in (a, b)]
    expected = operands[0].double() @ operands[1].double() + c_in.double()
    for lane in range(32):
        for i in range(4):
            assert abs(result[lane, i] - expected[c(lane >> 2, lane % 4, i)]) < 1e-5


@pytest.mark.parametrize("transposed", [0, 1])
def test_ldmatrix_gives_each_lane_its_elements(run, transposed):
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    out = run("load_matrix", a=matrices.view(torch.int32).view(-1), b=torch.zeros(128, dtype=torch.int32), n=transposed)
    halves = out.view(torch.int16).view(32, 4, 2)
    for lane in range(32):
        for m in range(4):
            row, column = lane // 4, 2 * (lane % 4)
            expected = matrices[m].t() if transposed else matrices[m]
            assert halves[lane, m].tolist() == expected[row, column : column + 2].tolist()


def test_half_conversions_are_torchs(library):
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for bits in range(0, 65536, 7):
        value = every[bits].float().item()
        assert library.from_half(bits) == value or value != value
    gen = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(500, generator=gen) * s for s in (1.0, 1e-5, 1e-7, 3e4)])
    values = torch.cat([values, torch.tensor([65519.99, 65520.0, 1e9, -1e9, 0.0, 2**-24, 2**-25, 1.5 * 2**-25])])
    for value in values:
        assert library.to_half(value.item()) == value.half().view(torch.int16).item() & 0xFFFF
        assert library.to_bfloat(value.item()) == value.bfloat16().view(torch.int16).item() & 0xFFFF
