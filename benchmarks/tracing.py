"""Characters a second of a whole trace: `python -m benchmarks.tracing MODEL TEXT`, the best of a few on two threads."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from fastlstm.charlm import CharLM, trace

if __name__ == "__main__":
    torch.set_num_threads(2)
    model, text = CharLM.load(sys.argv[1]), Path(sys.argv[2]).read_text()[:100_000]
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        trace(model, text)
        seconds.append(time.perf_counter() - begin)
    print(f"{len(text) / min(seconds):,.0f} characters/s over {len(text):,} characters")
