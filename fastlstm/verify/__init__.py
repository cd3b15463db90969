"""Checks and times the GPU backends on the GPU that is there, and remembers the result: `fastlstm doctor --verify`.

    cases.py     the table of cases          judge.py    the one rule of accuracy
    checks.py    runs the table              timings.py  times the candidates, torch's own path included
    record.py    what passed and won, on disk, and what follows from it for a call
    isolate.py   runs either in a process of its own, so that a crash or a hang ends there
    run.py       all of it, with what it prints

Dispatch imports this package for CUDA tensors, so only `record` is loaded here.
"""

from __future__ import annotations

from fastlstm.verify.record import choice, failed

__all__ = ["choice", "failed"]
