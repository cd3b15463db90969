"""What the Triton kernels compile to, read from PTX and machine code; no GPU. Each compile runs in a process of its own.

The interpreter cannot see spills, shared memory, barriers or which unit multiplies: that is what this file is for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from tools import gpu_resources, triton_variants

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(util.find_spec("triton") is None, reason="Triton is not installed")


def _python(*arguments: str) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finish(process: subprocess.Popen) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


# Every kernel of calls that differ in T, B, H (up to the tile), alignment and direction, dense and packed: how often is
# each compiled? 1 and multiples of 16 are what Triton would make kernels of their own for.
_ONE_KERNEL = """
from itertools import product
import torch
from fastlstm.backends.triton import launch, planner
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from tools.triton_compile import target
half = dict(dtype=torch.bfloat16)
small = planner.Tile(16, 32, 32, 4, 2)
tiles = {"single_block": small, "streamed": planner.Tile(16, 32, 64, 8, 3), "per_step": planner.Tile(16, 16, 128, 4, 3)}
kernels, ways = {}, (False, True)

def start(kernel, grid, args, options):
    assert {"T", "B"} <= set(kernel.do_not_specialize) or {"base", "n"} <= set(kernel.do_not_specialize)
    kernels.setdefault((kernel.fn.__module__, kernel.__name__, packed), []).append(kernel.warmup(*args, grid=grid, **options))

def call(plan, T, B, H):
    lead = (T * B,) if packed else (T, B)
    sizes, offsets = (torch.full((T,), B), torch.arange(T) * B) if packed else (None, None)
    x = torch.zeros(T * B * 5 + 1, **half)[1:].view(*lead, 5)
    weights = (torch.zeros(4 * H, 5, **half), None, torch.zeros(4 * H, H, **half), None)
    inputs = (x, None, *weights, torch.zeros(B, H, **half), torch.zeros(B, H), sizes, offsets)
    inputs = OpInputs(*inputs, torch.zeros(T * B + 1, dtype=torch.bool)[1:].view(lead), T > 2, 1)
    h, c, gates, _, _ = launch.forward(plan, inputs)
    launch.backward(plan, inputs, Saved(h, c, gates), Grads(h, None, None, None))

with target(90), launch.instead(start):
    for (kernel, tile), packed in product(tiles.items(), ways):
        plan = planner.TritonPlan(kernel, "half", tile, tile, 0, ())
        for k, (T, B) in enumerate(product((1, 16, 17), repeat=2)):
            call(plan, T, B, (1, 16, 20, 32)[k % 4])
assert len(kernels) == 12, list(kernels)
for name, compiled in kernels.items():
    once = len({id(k) for k in compiled})
    assert len(compiled) >= 9 and once == 1, (name, once)
    assert "mma.sync" in compiled[0].asm["ptx"]
    barrier = "barrier" in compiled[0].asm["ttgir"] and "bar.sync" in compiled[0].asm["ptx"]
    assert barrier == ("streamed" in name[0]), name
"""


def test_one_kernel_serves_every_size() -> None:
    _finish(_python("-c", _ONE_KERNEL))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Every variant the planner picks, for sm_80 and sm_90, side by side."""
    folder = tmp_path_factory.mktemp("compiled")
    files = [folder / f"{capability}.jsonl" for capability in (80, 90)]
    running = [_python("-m", "tools.triton_compile", file.stem, "--json", str(file)) for file in files]
    for process in running:
        _finish(process)
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _broken(row: dict) -> list[str]:
    """What is wrong with one compiled kernel."""
    product, ahead = not row["kernel"].endswith("backward_cell"), not row["tile"].endswith(" s1")
    promises = {
        "no local memory in loops": row["spills"] == 0,
        "no stack": row["stack"] == 0,
        "shared memory within the planner's bound and the device's limit": row["shared"]
        <= row["bound"]
        <= row["limit"],
        "at most 255 registers": row["registers"] <= 255,
        "no LDG.CONSTANT in loops, of memory that the kernel writes": row["constant_loads"] == 0,
        "no 2-byte loads in loops": row["narrow_loads"] == 0,
        "products on tensor cores unless ieee": (row["tensor"] > 0) == (product and row["math"] != "ieee"),
        "TF32 where asked, and only there": row["tf32"] == (product and row["math"] == "tf32"),
        "TF32 operands rounded": row["rounds_tf32"] == (product and row["math"] == "tf32"),
        "loads ahead of time, with more than one stage": (row["async_copies"] > 0) == (product and ahead),
        "a barrier where h goes through memory": row["block_barrier"] or not row["kernel"].startswith("streamed"),
    }
    return [name for name, kept in promises.items() if not kept]


def _variants(rows: list[dict], capability: int) -> set[tuple]:
    """(kernel, math, tile, direction) of what was compiled for one architecture."""
    compiled_rows = [row for row in rows if row["capability"] == capability]
    split = [(*row["kernel"].split("."), row["math"], row["tile"]) for row in compiled_rows]
    return {(kernel, math, tile, name.split("_")[0]) for kernel, name, math, tile in split}


def _expected_variants(capability: int) -> set[tuple]:
    """The same, of what the planner picks over its committed list."""
    return {(s, m, triton_variants.describe(s, t), d) for s, m, t, d in triton_variants.variants(capability)}


@pytest.mark.slow
def test_every_variant_keeps_what_is_promised(compiled: list[dict]) -> None:
    assert {row["capability"] for row in compiled} == {80, 90}
    broken = [(_broken(row), row) for row in compiled if _broken(row)]
    assert not broken, "\n".join(map(str, broken))


@pytest.mark.slow
def test_every_variant_of_the_planners_list_is_compiled(compiled: list[dict]) -> None:
    """Every (kernel, math, tile, direction) of the planner's list was compiled, and nothing else."""
    for capability in (80, 90):
        assert _variants(compiled, capability) == _expected_variants(capability)


def test_committed_rows_are_of_the_planners_list() -> None:
    """docs/gpu-resources has every variant of every architecture in it, and all of its rows keep what is promised."""
    rows = gpu_resources.read(ROOT / "docs" / "gpu-resources" / "triton.jsonl")
    assert [(_broken(row), row) for row in rows if _broken(row)] == []
    capabilities = {row["capability"] for row in rows}
    assert capabilities == {device.capability for device, *_ in triton_variants.committed()}
    for capability in capabilities:
        assert _variants(rows, capability) == _expected_variants(capability), f"sm_{capability}: compile it again"
