"""Checks and times the GPU backends on the GPU that is there, and remembers the result: `fastlstm doctor --verify`.

    correctness.py  runs the table of cases (fastlstm.testing) through every kernel
    timings.py      times kernels and backends, torch's own path included
    cudnn.py        the algorithm that torch's own path runs
    plans.py        what is run by default and with --full, and how long it takes
    record.py       what passed and won, on disk, and which backend runs a call by it
    isolate.py      runs work in a subprocess, so that a crash or a hang ends there
    stages.py       continues in a fresh subprocess after one, without the kernel at fault
    run.py          all of it, with what it prints

Dispatch imports this package for CUDA tensors, so only `record` is loaded here.
"""

from __future__ import annotations

from fastlstm.verify.record import all_passed, choice, has_passed

__all__ = ["all_passed", "choice", "has_passed"]
