"""Characters per second of a whole trace that keeps everything: `python -m benchmarks.tracing MODEL [TEXT]`, on two threads.

MODEL: a checkpoint, the folder of a run, or `names`. TEXT: a file; by default the start of the training text, repeated. Timed in
pieces of bounded memory, and whole (600 MB of new arrays at 2 × 128).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from fastlstm.charlm import CharLM, pieces, trace

N = 100_000

if __name__ == "__main__":
    torch.set_num_threads(2)
    model = CharLM.load(sys.argv[1])
    ids = model.vocab.encode(Path(sys.argv[2]).read_text()) if sys.argv[2:] else model.corpus().ids
    ids = np.resize(ids[:N], N).astype(np.int64)
    print(
        f"{model.config.num_layers} × {model.config.hidden_size}, {N:,} characters, characters/s of each of 5 readings"
    )
    for name, read in (("pieces", lambda: sum(map(len, pieces(model, ids)))), ("trace", lambda: trace(model, ids))):
        rates = []
        for _ in range(5):
            begin = time.perf_counter()
            read()
            rates.append(N / (time.perf_counter() - begin))
        print(f"{name:6}  {'  '.join(f'{rate:7,.0f}' for rate in rates)}   median {statistics.median(rates):,.0f}")
