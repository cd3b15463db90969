"""What the tests of `benchmarks.gpu_day` share: a run in a process, its rows, a made-up run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_day import executor, row_file

ROOT = Path(__file__).parents[2]


def day(folder: Path, *arguments: str, fault: str = "", timeout: str = "") -> subprocess.CompletedProcess:
    env = {**os.environ, "FASTLSTM_GPU_DAY_FAULT": fault, "PYTHONPATH": str(ROOT)}
    env |= {"FASTLSTM_GPU_DAY_TIMEOUT": timeout} if timeout else {}
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--rehearse", "--out", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=1200)


def read(folder: Path, stage: str) -> list[dict]:
    return [row for row in row_file.read(folder / "raw.jsonl") if row["stage"] == stage]


def stage_rows(folder: Path, name: str) -> list[dict]:
    return [row for row in read(folder, "stage") if row["name"] == name]


def rehearsal(**changes) -> executor.GpuExecutor:
    return executor.executor_for({"rehearse": True, "out": "", "until": 1e12, "lost": [], "stage": "right", **changes})


TILING = {"groups": 2, "k_splits": 8, "row_tiles": 1, "gate_splits": 1}

MADE_UP = (
    {"stage": "env", "what": "card", "gpu": "NVIDIA H100"},
    {"stage": "stage", "name": "right", "code": -11, "seconds": 3.0, "lost": "single_block f32",
     "error": "a\nSegmentation fault"},
    {"stage": "stage", "name": "right", "code": 0, "seconds": 9.0, "losses": 1},
    {"stage": "right", "kernel": "single_block", "math": "bf16", "case": "odd", "backward": True, "fine": False, "worst": 3.5},
    {"stage": "right", "kernel": "single_block", "math": "bf16", "case": "odd", "backward": False, "fine": True, "worst": "nan"},
    *(
        {"stage": "module", "math": "bf16", "layout": "dense", "L": 1, "H": 512, "B": 16, "T": 128, "training": False,
         "graph": graph, "seconds": seconds, "wrong": False, "plan": "cuda: lean: 128 blocks"}
        for graph, seconds in ((False, {"torch": 2e-3, "cuda": 1e-3}), (True, {"torch": 2e-3}))
    ),
    {"stage": "cudnn", "math": "f16", "layout": "dense", "L": 1, "H": 512, "B": 16, "mode": "training", "graph": True,
     "us": 5.25},
    *(
        {"stage": "sweep", "math": "bf16", "H": 512, "B": 16, "backward": False, "us": us, "wrong": wrong, "planner": planner,
         "predicted_us": 1.5, "kernel": "cooperative", "tiling": TILING}
        for us, wrong, planner in ((2.0, False, True), (1.75, False, False), (0.5, True, False))
    ),
    {"stage": "sweep", "math": "bf16", "H": 512, "B": 16, "backward": False, "us": 2.25, "wrong": False, "planner": False,
     "predicted_us": 1.0, "kernel": "lean", "tiling": TILING},
    {"stage": "characters", "L": 2, "H": 128, "B": 50, "math": "tf32", "autocast": "none", "graph": False,
     "characters_per_second": {"torch": 1e6, "cuda": 2e6}},
    {"stage": "kernelbench", "problem": 35, "math": "tf32", "graph": False, "ms": {"torch": 27.0, "cuda": 9.0},
     "published_ms": 27.2},
    {"stage": "graph", "math": "bf16", "H": 512, "layout": "packed", "mode": "training", "same": None},
    {"stage": "triton", "fine": True},
    {"stage": "train", "math": "bf16", "H": 256, "B": 64,
     "us": {"input": 0.5, "forward": 3.5, "forward_kernel": 3.25, "backward": 9.0, "backward_kernel": None, "dx": 0.75}},
    {"stage": "host", "library": "cuda", "mode": "training", "host_us": 300.4, "done_us": 310.0},
    {"stage": "host", "library": "cuda", "mode": "training", "name": "lstm.py:1 forward", "own_us": 40.2},
    {"stage": "ncu", "kernel": "void a::cooperative_forward<b>(c)", "H": 256, "B": 16, "samples": 9,
     "hot": [[16, "LDS R2, [R3]", 7, "wait 5"]]},
    {"stage": "module", "item": "bf16 2x512", "error": "RuntimeError: no"},
)  # fmt: skip
