"""Costs of fastlstm outside its calls.

Time of the import, size of the wheel, time of the torch operation after a call, time to read and encode a text.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import fastlstm
from benchmarks.schema import Row, quantiles
from benchmarks.workload import same_weights
from fastlstm.charlm.data import corpus

_IMPORT = """
import time
import torch
start = time.perf_counter()
import fastlstm
print(time.perf_counter() - start)
"""


def import_rows(rounds: int = 7) -> list[Row]:
    """Return the seconds that `import fastlstm` takes after `import torch`, each round in a fresh process."""
    values = []
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(rounds + 1):
        done = subprocess.run([sys.executable, "-c", _IMPORT], env=env, capture_output=True, text=True, check=True)
        values.append(float(done.stdout))
    values = values[1:]  # the first reads files from disk and writes .pyc, which a user has
    return [_alone("import/after-torch", values)]


def wheel_rows() -> list[Row]:
    """Return the bytes of a wheel of the installed package: its files with the native module, deflated."""
    folder = Path(fastlstm.__file__).parent
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in files:
            wheel.write(path, path.relative_to(folder.parent))
    return [_alone("wheel/size", [float(buffer.tell())], "B")]


def after_rows(rounds: int = 60) -> list[Row]:
    """Return the seconds of a matrix product right after a call of fastlstm (`cpu`), of nn.LSTM, or of nothing (`alone`).

    A thread pool that spins after its call slows the product. The ratio is nn.LSTM's time / the contender's time.
    """
    torch_lstm = nn.LSTM(128, 128)
    lstm, x = same_weights(fastlstm.LSTM(128, 128), torch_lstm), torch.randn(50, 50, 128)
    a, b = torch.randn(2, 384, 384)
    expected = torch_lstm(x)[0]
    before: dict[str, Callable[[], object]] = {
        "torch": lambda: torch_lstm(x),
        "cpu": lambda: lstm(x),
        "alone": lambda: None,
    }
    times: dict[str, list[float]] = {name: [] for name in before}
    with torch.no_grad(), fastlstm.backend("cpu"):
        torch.testing.assert_close(lstm(x)[0], expected, rtol=1e-4, atol=1e-5)
        for _ in range(rounds):
            for name, call in before.items():
                call()
                start = time.perf_counter()
                torch.mm(a, b)
                times[name].append(time.perf_counter() - start)
    usual = statistics.median(times["torch"])
    base = Row("after/mm-384", "", T=50, B=50, I=128, H=128, P=128, L=1, directions=1, calls=1)
    return [
        quantiles(replace(base, contender=name), values, [usual / statistics.median(values)])
        for name, values in times.items()
    ]


def corpus_rows(rounds: int = 7) -> list[Row]:
    """Return the seconds that reading, counting and encoding 20 MB of UTF-8 takes."""
    line = "The quick brown fox jumps over the lazy dog. Grüße!\n".encode()
    times = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "20-megabytes.txt")
        path.write_bytes(line * (20_000_000 // len(line)))
        for _ in range(rounds):
            start = time.perf_counter()
            corpus.load(str(path), corpus.CorpusOptions())
            times.append(time.perf_counter() - start)
    return [_alone("corpus/read-20-MB", times)]


def _alone(case: str, values: list[float], unit: str = "s") -> Row:
    """Return the row of a case in which nn.LSTM has no part."""
    row = quantiles(Row(case, "fastlstm", unit=unit, calls=1), values, [1.0])
    return replace(row, ratio=None, ratio_p20=None, ratio_p80=None)
