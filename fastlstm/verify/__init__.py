"""Checks and times the GPU backends on the GPU that is there, and remembers the result: `fastlstm doctor --verify`.

    cases.py     the table of cases          judge.py    the one rule of accuracy
    checks.py    runs the table              timings.py  times kernels and backends, torch's own path included
    cudnn.py     what torch's own path runs  plans.py    what is run by default and with --full, and how long it takes
    record.py    what passed and won, on disk, and what follows from it for a call
    isolate.py   runs work in a process of its own, so that a crash or a hang ends there
    stages.py    goes on in a fresh process after one, without what was at fault
    run.py       all of it, with what it prints

Dispatch imports this package for CUDA tensors, so only `record` is loaded here.
"""

from __future__ import annotations

from fastlstm.verify.record import choice, trusts

__all__ = ["choice", "trusts"]
