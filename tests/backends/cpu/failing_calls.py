"""Every native call with each of its allocations failing once: MemoryError, and the next call is right. Run as a program.

LD_PRELOAD=failing_allocation.so python -m tests.backends.cpu.failing_calls
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import fastlstm
from fastlstm.backends import native
from fastlstm.backends.packing import pack, padded

T, B, H, I, V = 9, 40, 67, 13, 11  # two threads share the rows
FEW = 4  # rows: two threads share the units, with a barrier a step


def _layer(rows: int, real: torch.dtype, **inputs: Tensor) -> dict:
    """Arguments of lstm_forward."""
    made = functools.partial(torch.randn, dtype=real)
    arguments = {"double": real is torch.float64, "T": T, "B": rows, "H": H, "P": H, "reverse": False, "threads": 2}
    arguments |= {"h": made(T, rows, H), "c": made(T, rows, H), "gates": made(T, rows, 4 * H)}
    arguments |= {"h_n": made(rows, H), "c_n": made(rows, H), "w_hh": made(4 * H, H), "h0": made(rows, H)}
    return arguments | {"c0": made(rows, H), "bias": made(4 * H), **inputs}


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and native call, with every tensor made beforehand."""
    lib = native.load()
    for rows in (B, FEW):
        x, w_x = torch.randn(T, rows, I), torch.randn(4 * H, I)
        forward = _layer(rows, torch.float32, x=x, w_x=w_x, I=I)
        yield f"forward of {rows} rows", functools.partial(lib.lstm_forward, **forward)
        inputs = {name: forward[name] for name in ("gates", "c", "c0", "w_hh", "x", "w_x", "h", "h0")}
        outputs = {"dx": x, "dw_x": w_x, "dbias": torch.zeros(4 * H), "dw_hh": forward["w_hh"]}
        outputs = {name: torch.zeros_like(v) for name, v in outputs.items()}
        outputs |= {"dh0": torch.zeros(rows, H), "dc0": torch.zeros(rows, H), "dh": torch.randn(T, rows, H)}
        sizes = {"double": False, "T": T, "B": rows, "H": H, "P": H, "reverse": True, "threads": 2, "I": I}
        yield f"backward of {rows} rows", functools.partial(lib.lstm_backward, **sizes, **inputs, **outputs)
    a, b, c = torch.randn(130, 70, dtype=torch.float64), torch.randn(70, 90).double(), torch.zeros(130, 90).double()
    yield "gemm", functools.partial(lib.gemm, double=True, c=c, a=a, b=b, accumulate=False, threads=2)
    out, rows_, ids = torch.zeros(V, 4 * H), torch.randn(300, 4 * H), torch.randint(V, (300,))
    sums = {"out": out, "rows": rows_, "ids": ids, "N": 300, "V": V, "width": 4 * H}
    yield "sum_by_id", functools.partial(lib.sum_by_id, double=False, threads=2, **sums)
    w, blocks = torch.randn(4 * 300, 300), torch.zeros(4 * padded(300) * 300)
    packing = {"out": blocks, "w_x": None, "w_h": w, "count": 1, "gates": 4, "units": 300, "I": 0, "P": 300}
    yield "pack", functools.partial(lib.pack, bfloat16=False, threads=2, **packing)
    yield from _engines(lib)
    yield from _int8(lib)
    small, x = fastlstm.LSTM(I, 300, 2), torch.randn(1, 1, I)
    small(x)
    yield "small call", torch.no_grad()(functools.partial(small, x))


def _int8(lib: object) -> Iterator[tuple[str, Callable[[], object]]]:
    made = fastlstm.quantize(torch.nn.LSTM(I, 300, proj_size=67))
    layers, sizes = made.packed_layers(), {"H": 300, "P": 67, "threads": 2}
    for rows in (2, B):
        state = {"h0": torch.zeros(rows, 67), "c0": torch.zeros(rows, 300)}
        state |= {"h_n": torch.zeros(rows, 67), "c_n": torch.zeros(rows, 300)}
        values = {"x": torch.randn(T, rows, I), "h": torch.zeros(T, rows, 67), "T": T, "B": rows, "reverse": False}
        yield (
            f"int8 forward of {rows} rows",
            functools.partial(lib.int8_forward, layers=layers, **sizes, **state, **values),
        )
    state = {"h": torch.zeros(2, 1, 3, padded(67)), "c": torch.zeros(1, 3, padded(300)), "out": torch.zeros(3, 67)}
    state |= {"x": torch.randn(3, I), "h_unprojected": torch.zeros(3, padded(300)), "B": 3, "side": 0}
    yield "int8 step", functools.partial(lib.int8_step, layers=layers, **sizes, **state)


def _engines(lib: object) -> Iterator[tuple[str, Callable[[], object]]]:
    hidden, rows = 300, 3
    start, w = (
        pack(torch.randn(4 * hidden, 1), gates=4),
        pack(torch.randn(4 * hidden, hidden), torch.randn(4 * hidden, I), gates=4),
    )
    state = {"h": torch.zeros(2, 1, rows, padded(hidden)), "c": torch.zeros(1, rows, padded(hidden))}
    state |= {"out": torch.zeros(rows, hidden), "x": torch.randn(rows, I), "h_unprojected": None}
    layers = [lib.StepLayer(start=start, w=w, w_hr=None, I=I)]
    sizes = {"bfloat16": False, "B": rows, "H": hidden, "P": hidden, "side": 0, "threads": 2}
    yield "step", functools.partial(lib.lstm_step, layers=layers, **sizes, **state)
    model = fastlstm.TokenLSTM(V, None, hidden)
    decoder, calls = fastlstm.Decoder(model, torch.randn(V, hidden)), []
    sample = lib.sample
    lib.sample = lambda **arguments: (
        calls.append(arguments),
        sample(**arguments),
    )  # what torch allocates is not asked here
    decoder.start([1, 2, 3], num=3, stop=[[4, 5]]).draw(4)
    lib.sample = sample
    yield "sample", functools.partial(sample, **calls[-1])


def main() -> None:
    """Print how many allocations of each call failed; end with an error where one was not answered by MemoryError."""
    shim = ctypes.CDLL(None)
    shim.allocations.restype = ctypes.c_long
    torch.set_num_threads(2)
    for name, call in calls():
        call()
        native.load().empty_cache(2)
        shim.fail_allocation(0)
        call()
        count, failed = shim.allocations(), 0
        for n in range(1, count + 1):
            native.load().empty_cache(2)  # kept scratch memory would not be allocated again
            shim.fail_allocation(ctypes.c_long(n))
            try:
                call()
            except MemoryError:
                failed += 1
            except RuntimeError as error:  # torch's own words, for what torch itself allocates
                if not re.search("memory|bad_alloc", str(error)):
                    raise
                failed += 1
            shim.fail_allocation(0)
        call()
        print(f"{name}: {failed} of {count}")


if __name__ == "__main__":
    main()
