"""Compiles every Triton kernel that the planner can pick, for one GPU architecture, without a GPU.

    python -m tools.triton_compile 90 --json out.jsonl [--only streamed] [--math half]

A stand-in driver names the architecture; arguments go through Triton's own binder, so that the compiled code is what a
launch on that GPU would get. One JSON line per kernel. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from fastlstm.backends import cost_model
from fastlstm.backends.triton import planner
from fastlstm.backends.triton.planner import Tile, TritonPlan
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from tools import triton_variants
from tools.gpu_rows import KernelRow

OPTIONS = ("plain", "full")  # dense; packed, reset, ids, gradients into c and the last states, odd H


@dataclass(frozen=True)
class TritonKernelRow(KernelRow):
    """What one kernel compiled to; counts are of SASS instructions, spills, barriers and loads of those inside loops.

    limit: shared memory that the architecture gives a block, in bytes; bound: what the planner counts on.
    """

    bound: int
    limit: int
    stack: int
    spills: int
    barriers: int
    tensor: int
    tf32: bool
    ffma: int
    constant_loads: int
    block_barrier: bool
    async_copies: int
    narrow_loads: int
    rounds_tf32: bool


@contextmanager
def target(capability: int) -> Iterator[None]:
    """Let Triton compile for a GPU that is not there."""
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self):
            return capability  # the key of Triton's cache in memory

        def get_current_stream(self, device):
            return 0

    config = triton.runtime.driver
    active = "_active" if hasattr(config, "_active") else "active"
    before = config.__dict__.get(active)
    config.set_active(Driver())
    try:
        yield
    finally:
        setattr(config, active, before)


def compile_variant(kernel: str, math: str, tile: Tile, direction: str, options: str) -> list[tuple[str, object]]:
    """Compile the kernels of one variant for the current target; returns (name, compiled kernel) for each."""
    from fastlstm.backends.triton import launch

    kernels = []

    def start(kernel, grid, args, constants):
        name = f"{kernel.fn.__module__.rsplit('.', 1)[1]}.{kernel.fn.__name__}"
        if name not in dict(kernels):
            kernels.append((name, kernel.warmup(*args, grid=grid, **constants)))

    plan = TritonPlan(kernel, math, tile, tile, 0, ())
    projections = (False, True) if kernel == "per_step" and options == "full" else (False,)
    with launch.instead(start):
        for projected in projections:
            tensors = _tensors(tile, kernel, math, options, projected)
            if direction == "forward":
                launch.forward(plan, tensors["inputs"])
            else:
                launch.backward(plan, tensors["inputs"], tensors["saved"], tensors["grads"])
    return kernels


def _tensors(tile: Tile, kernel: str, math: str, options: str, projected: bool) -> dict[str, OpInputs | Saved | Grads]:
    """Arguments of a call of two steps, on the CPU: only their types, alignment and which are None matter."""
    full = options == "full"
    dtype = torch.bfloat16 if math == "half" else torch.float32
    H = tile.BN if kernel == "single_block" else 256
    H, B, T = H - full, 3, 2
    P = H - 2 if projected else H
    rows = (T * B,) if full else (T, B)

    def new(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype)

    sizes = torch.full((T,), B) if full else None
    offsets = torch.arange(T) * B if full else None
    w_hr = new(P, H) if projected else None
    x, ids = (None, torch.zeros(rows, dtype=torch.int64)) if full else (new(*rows, 16), None)
    w_x, bias = (new(5, 4 * H), None) if full else (new(4 * H, 16), new(4 * H))
    reset = torch.zeros(rows, dtype=torch.bool) if full else None
    states = (new(B, P), new(B, H, dtype=torch.float32))
    inputs = (x, ids, w_x, bias, new(4 * H, P), w_hr, *states, sizes, offsets, reset, False, 1)
    saved = (new(*rows, P), new(*rows, H, dtype=torch.float32), new(*rows, 4 * H))
    dc = new(*rows, H, dtype=torch.float32) if full else None
    grads = (new(*rows, P), dc, *(states if full else (None, None)))
    return {"inputs": OpInputs(*inputs), "saved": Saved(*saved), "grads": Grads(*grads)}


def rows(capability: int, only: str | None = None, math: str | None = None) -> Iterator[TritonKernelRow]:
    """Compile the variants of one architecture and describe each kernel."""
    from tools import sass

    limit = next(d.shared_bytes for d in cost_model.KNOWN.values() if d.capability == capability)
    with target(capability):
        for kernel, how, tile, direction in triton_variants.variants(capability):
            if only not in (None, kernel) or math not in (None, how):
                continue
            bound = planner.shared_bytes(kernel, tile, 2 if how == "half" else 4, direction == "backward")
            for options in OPTIONS:
                for name, compiled in compile_variant(kernel, how, tile, direction, options):
                    yield _row(sass, capability, name, how, tile, options, compiled, bound, limit)


def _row(
    sass, capability: int, name: str, math: str, tile: Tile, options: str, compiled, bound: int, limit: int
) -> TritonKernelRow:
    code = sass.read(compiled.asm["cubin"])
    return TritonKernelRow(
        backend="triton",
        capability=capability,
        kernel=name,
        math=math,
        tile=triton_variants.describe(name.split(".")[0], tile),
        options=options,
        registers=code.registers,
        shared=compiled.metadata.shared,
        bound=bound,
        limit=limit,
        stack=code.stack,
        spills=code.spills,
        barriers=code.count("BAR", in_loops=True),
        tensor=code.tensor,
        tf32=re.search(r"mma\S*[.:]tf32", compiled.asm["ptx"]) is not None,  # mma.sync, wgmma, or tcgen05.mma
        ffma=code.count("FFMA", "FFMA2"),
        constant_loads=sum(n for op, n in code.loops.items() if op.startswith("LDG") and "CONSTANT" in op),
        # debug_barrier is in the IR before layouts bring barriers of their own, and must survive into PTX
        block_barrier="barrier" in compiled.asm["ttgir"] and "bar.sync" in compiled.asm["ptx"],
        async_copies=code.count("LDGSTS", in_loops=True),
        narrow_loads=code.count("LDG.E.U16", in_loops=True),
        # the tensor core drops 13 bits; half of the last kept one is added before (math.py's to_tf32)
        rounds_tf32=re.search(r"selp\.b32\s+%r\d+, 4096, 0", compiled.asm["ptx"]) is not None,
    )


def main() -> None:
    """Compile for the architecture on the command line and write one JSON line per kernel as it is done."""
    if os.environ.get("TRITON_INTERPRET"):
        raise SystemExit("TRITON_INTERPRET is set, so nothing would be compiled; unset it")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capability", type=int, help="80 for sm_80, 90 for sm_90, …")
    parser.add_argument("--json", help="file to append to (default: standard output)")
    parser.add_argument("--only", choices=planner.KERNELS)
    parser.add_argument("--math", choices=("half", "tf32", "ieee"))
    options = parser.parse_args()
    for row in rows(options.capability, options.only, options.math):
        line = json.dumps(asdict(row))
        if options.json is None:
            print(line, flush=True)
        else:
            with open(options.json, "a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
