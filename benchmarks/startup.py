"""What fastlstm costs beside its own calls: importing it, its wheel, and the torch operation that comes after a call."""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import fastlstm
from benchmarks.record import Row, quantiles
from benchmarks.work import same_weights

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
    for _ in range(rounds + 1):
        done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        values.append(float(done.stdout))
    values = values[1:]  # the first reads files from disk and may write .pyc
    row = quantiles(Row("import/after-torch", "fastlstm", calls=1), values, [1.0])
    return [replace(row, ratio=None, ratio_p20=None, ratio_p80=None)]


def wheel_rows() -> list[Row]:
    """Return the bytes that the installed package takes in a wheel: its files, the native module too, compressed as there."""
    folder = Path(fastlstm.__file__).parent
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in files:
            wheel.write(path, path.relative_to(folder.parent))
    row = quantiles(Row("wheel/size", "fastlstm", unit="B", calls=1), [float(buffer.tell())], [1.0])
    return [replace(row, ratio=None, ratio_p20=None, ratio_p80=None)]


def after_rows(rounds: int = 60) -> list[Row]:
    """Return the seconds of a matrix product right after a call of fastlstm (`cpu`), of nn.LSTM, of nothing (`alone`).

    A thread pool that spins on after its call would show here. The ratio is nn.LSTM's to the contender's, as elsewhere.
    """
    theirs = nn.LSTM(128, 128)
    ours, x = same_weights(fastlstm.LSTM(128, 128), theirs), torch.randn(50, 50, 128)
    a, b = torch.randn(2, 384, 384)
    expected = theirs(x)[0]
    before: dict[str, Callable[[], object]] = {
        "torch": lambda: theirs(x),
        "cpu": lambda: ours(x),
        "alone": lambda: None,
    }
    times: dict[str, list[float]] = {name: [] for name in before}
    with torch.no_grad(), fastlstm.backend("cpu"):
        torch.testing.assert_close(ours(x)[0], expected, rtol=1e-4, atol=1e-5)
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
