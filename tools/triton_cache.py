"""Compiles for the H100, without a GPU, what `python -m benchmarks.gpu_day` runs of Triton's kernels, and keeps it.

    python -m tools.triton_cache [FOLDER]     in the folder of `make gpu-day`, with the Python, torch and Triton of the GPU
                                              machine; FOLDER: triton-cache if not given

There, TRITON_CACHE_DIR=triton-cache (in that same folder) saves half a minute of compiling. Triton's key is made of its own
files, the kernels' source and their options, so another Triton compiles anew. Its index has absolute paths; here they become
relative to the folder. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

H100 = ("NVIDIA H100", 90, 132, 227 << 10)  # name, compute capability, multiprocessors, shared memory of a block


def work() -> list[tuple[Callable, tuple]]:
    """What the stage does in its processes, on the CPU in place of the GPU."""
    from benchmarks.gpu_day import triton as stage

    checks = product(stage.KERNELS, stage.MATHS)
    calls = [(stage.check, (kernel, math, stage.CASES, "cpu")) for kernel, math in checks]
    return calls + [(stage.warm, (config, "cpu")) for config in stage.TIMED]


def compile_one(number: int) -> int:
    """Compile the kernels that one piece of the stage's work launches; returns how many launches there were."""
    from fastlstm.backends.triton import backend, launch, planner
    from tools.triton_compile import target

    backend._wrong_device = lambda device: None
    backend.gpu = lambda device: planner.GpuLimits(*H100)
    launches = 0

    def start(*launched: object) -> None:
        nonlocal launches
        launches += 1
        launch.compile_only(*launched)

    run, arguments = work()[number]
    with target(H100[1]), launch.instead(start):
        run(*arguments)  # nothing is launched, so the numbers that it judges are not
    return launches


def settle(cache: Path) -> int:
    """Keep of each kernel its machine code and what describes it, found from the folder that the cache lies in.

    Returns how many kernels there are.
    """
    indexes = list(cache.glob("*/__grp__*.json"))
    for path in indexes:
        index = json.loads(path.read_text())
        names = [name for name in index["child_paths"] if name.endswith((".cubin", ".json"))]
        for name in set(index["child_paths"]) - set(names):
            (path.parent / name).unlink(missing_ok=True)
        paths = {name: str(Path(cache.name, path.parent.name, name)) for name in names}
        path.write_text(json.dumps({**index, "child_paths": paths}))
    return len(indexes)


def main() -> None:
    """Fill the cache in the folder that the command line names."""
    if os.environ.get("TRITON_INTERPRET"):
        raise SystemExit("TRITON_INTERPRET is set, so nothing would be compiled; unset it")
    cache = Path(sys.argv[1] if len(sys.argv) > 1 else "triton-cache")
    os.environ["TRITON_CACHE_DIR"] = str(cache.absolute())  # before Triton is imported, in the processes below
    began = time.time()
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), get_context("spawn")) as pool:
        launches = sum(pool.map(compile_one, range(len(work()))))
    print(f"{settle(cache)} kernels for {launches} launches in {cache}, {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
