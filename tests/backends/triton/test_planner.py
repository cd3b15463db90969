"""The plan function on made-up devices: plain Python, neither Triton nor a GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fastlstm.backends.triton import planner
from fastlstm.backends.triton.planner import TritonPlan
from tools import triton_variants

MADE_UP = planner.GpuLimits("Made up", 90, 10, 100 << 10)
MATHS = ("half", "tf32", "ieee")


def test_the_planner_imports_nothing_but_the_standard_library() -> None:
    lines = Path(planner.__file__).read_text(encoding="utf-8").splitlines()
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported <= {"__future__", *sys.stdlib_module_names}


@pytest.mark.parametrize("math", MATHS)
def test_the_rule_goes_by_the_size_of_w_hh(math: str) -> None:
    assert planner.choose(MADE_UP, 16, 8, math).kernel == "single_block"
    assert planner.choose(MADE_UP, 128, 8, math).kernel == "streamed"
    assert planner.choose(MADE_UP, 4096, 8, math).kernel == "per_step"


def test_the_tile_covers_h_and_the_batch_grows_the_tile() -> None:
    for H in (1, 15, 16, 17, 33, 64):
        plan = planner.choose(MADE_UP, H, 8, "half")
        assert plan.kernel == "single_block"
        assert plan.forward.BN // 2 < max(H, 16) <= plan.forward.BN
    few, many = (planner.choose(MADE_UP, 512, B, "half", only="per_step").forward for B in (8, 4096))
    assert few.BM < many.BM


def test_shared_memory_is_held_to_the_device() -> None:
    """Each kernel in turn is refused for what it needs, and stages are given up before the kernel is."""
    single_block = partial(planner.choose, H=64, B=8, math="tf32", only="single_block")
    roomy = single_block(replace(MADE_UP, shared_bytes=227 << 10))
    assert (roomy.forward.stages, roomy.backward.stages) == (2, 2)
    tight = single_block(replace(MADE_UP, shared_bytes=roomy.shared_bytes - 1))
    assert (tight.forward.stages, tight.backward.stages) == (2, 1)
    refused = single_block(replace(MADE_UP, shared_bytes=32 << 10))
    assert isinstance(refused, str)
    assert refused.startswith("single_block: needs ")
    assert "Made up gives a block 32768" in refused
    nothing = planner.choose(replace(MADE_UP, shared_bytes=4 << 10), 64, 8, "tf32")
    assert nothing.count("bytes of shared memory") == 3
    smaller = planner.choose(replace(MADE_UP, shared_bytes=60 << 10), 64, 8, "tf32")
    assert smaller.kernel != "single_block"
    assert any(reason.startswith("single_block: needs ") for reason in smaller.reasons)


def test_reasons_name_the_rule_and_what_does_not_fit() -> None:
    plan = planner.choose(replace(MADE_UP, shared_bytes=227 << 10), 200, 8, "half")
    assert plan.reasons == ("W_hh has 312 KiB", "single_block: W_hh of H 200 does not stay on one multiprocessor")
    assert str(plan).startswith("triton: streamed (half), 16 rows × 64 units")


def test_streamed_needs_a_multiprocessor_a_block() -> None:
    rows = planner.choose(MADE_UP, 200, 8, "half").forward.BM
    assert planner.choose(MADE_UP, 200, rows * MADE_UP.sms, "half").kernel == "streamed"
    assert planner.choose(MADE_UP, 200, rows * MADE_UP.sms + 1, "half").kernel == "per_step"


def test_projection_goes_through_per_step() -> None:
    plan = planner.choose(MADE_UP, 16, 8, "half", projected=True)
    assert plan.kernel == "per_step"
    assert "streamed: projection goes through per_step" in plan.reasons
    reason = planner.choose(MADE_UP, 16, 8, "half", projected=True, only="streamed")
    assert "per_step: streamed was asked for" in reason
    assert "streamed: projection goes through per_step" in reason


@pytest.mark.parametrize("kernel", planner.KERNELS)
def test_a_kernel_that_is_asked_for_is_planned_where_another_would_be(kernel: str) -> None:
    assert planner.choose(MADE_UP, 16, 8, "half").kernel == "single_block"
    assert planner.choose(MADE_UP, 16, 8, "half", only=kernel).kernel == kernel


def test_type_switch_and_capability_say_how_products_are_made() -> None:
    assert planner.how(2, False, MADE_UP) == "half"
    assert planner.how(4, True, MADE_UP) == "tf32"
    assert planner.how(4, False, MADE_UP) == "ieee"
    assert planner.how(4, True, replace(MADE_UP, capability=75)) == "ieee"


def test_every_committed_call_has_a_plan_within_limits() -> None:
    """Tiles are legal for Triton (powers of two, 16 terms a product), and shared memory is what the device has."""
    for device, H, B, math in triton_variants.committed():
        plan = planner.choose(device, H, B, math)
        assert isinstance(plan, TritonPlan), (device.name, H, B, math, plan)
        assert plan.shared_bytes <= device.shared_bytes
        for tile in (plan.forward, plan.backward):
            assert all(size & (size - 1) == 0 for size in (tile.BM, tile.BN, tile.BK, tile.warps))
            assert min(tile.BN, tile.BK) >= 16
            assert (4 if math == "ieee" else 16) <= tile.BM
            assert tile.warps <= 16
