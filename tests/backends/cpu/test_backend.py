"""The CPU backend against the definition, on every instruction set of this machine and with one and two threads."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from fastlstm import backends
from fastlstm.backends import native
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from fastlstm.testing import accuracy, cases
from tests import exact, isas

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
cpu = backends.load("cpu")


@pytest.fixture(params=isas.FLOAT)
def isa(request: pytest.FixtureRequest):
    """Force one instruction set for a test."""
    with isas.use(request.param):
        yield request.param


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    """Run with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
def test_short_table_in_float32(case: cases.Case, isa: str, threads: int) -> None:
    accuracy.check_backend(cpu, case, torch.float32)
    assert native.load().isa() == isa


@pytest.mark.skipif(not exact.EIGHTY_BITS, reason="numpy's longdouble has no more digits than float64 here")
@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
def test_short_table_in_float64(case: cases.Case, isa: str, threads: int) -> None:
    """Judged in 80-bit numbers by the same rule: at most twice torch's own float64 error, or 4 eps."""
    results, torch_results, truth = [], [], []
    for seed in accuracy.draws(case):
        inputs, grads = (
            cases.make(case, torch.float64, seed, canary=True),
            cases.make_grads(case, torch.float64, seed + 1),
        )
        inputs = inputs._replace(**{k: v.contiguous() for k, v in inputs._asdict().items() if v is not None})
        op_inputs = OpInputs(*inputs, case.reverse, 1)
        h, c, gates, h_n, c_n = cpu.forward(op_inputs)
        results.append((h, c, h_n, c_n, *cpu.backward(op_inputs, Saved(h, c, gates), Grads(*grads))))
        baseline = accuracy.baseline(case, torch.float64, seed)
        torch_results.append([baseline[name] for name in accuracy.OP_OUTPUTS])
        truth.append(exact.outputs(inputs, grads, case.reverse))

    def distance(values: list, name: str) -> float:
        """Of all draws together, relative to the truth."""
        place, true = accuracy.OP_OUTPUTS.index(name), np.concatenate([t[name].ravel() for t in truth])
        error = np.concatenate([v[place].detach().numpy().ravel() for v in values]).astype(np.longdouble) - true
        return float(np.sqrt((error**2).sum()) / max(np.sqrt((true**2).sum()), np.finfo(np.float64).tiny))

    for name in accuracy.OP_OUTPUTS:
        if name != "dh_proj" or case.projection:
            allowed = max(2 * distance(torch_results, name), 4 * np.finfo(np.float64).eps)
            assert distance(results, name) <= allowed, (
                f"{case.id} {name}: {distance(results, name):.3g}, allowed {allowed:.3g}"
            )


@pytest.mark.parametrize("case", cases.FULL, ids=lambda case: case.id)
def test_full_table(case: cases.Case) -> None:
    accuracy.check_backend(cpu, case, torch.float32)


@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(case: cases.Case, dtype: torch.dtype) -> None:
    accuracy.check_backend(cpu, case, dtype)


@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
def test_recomputed_gates(case: cases.Case) -> None:
    accuracy.check_backend(cpu, case, torch.float32, save=2)


def _layer(T: int, B: int, H: int) -> OpInputs:
    """Arguments of a dense forward call."""
    x, w_x, bias, w_hh = (
        torch.randn(T, B, H),
        torch.randn(4 * H, H) / 8,
        torch.randn(4 * H) / 8,
        torch.randn(4 * H, H) / 8,
    )
    h0, c0 = torch.randn(B, H), torch.randn(B, H)
    return OpInputs(x, None, w_x, bias, w_hh, None, h0, c0, None, None, None, False, 1)


@pytest.mark.parametrize("shape", [(40, 50, 129), (40, 1, 300), (3, 200, 65), (70, 3, 520)], ids=str)
def test_a_second_call_gives_the_same_bits(shape: tuple[int, int, int], threads: int) -> None:
    args = _layer(*shape)
    first, second = cpu.forward(args), cpu.forward(args)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_forward_from_several_python_threads_gives_the_same_bits() -> None:
    args = _layer(50, 8, 65)
    expected, outputs = cpu.forward(args)[0], []
    workers = [threading.Thread(target=lambda: outputs.append(cpu.forward(args)[0])) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(outputs) == 4
    assert all(torch.equal(h, expected) for h in outputs)


def test_fork_after_use_does_not_hang() -> None:
    args = _layer(20, 64, 128)
    expected = cpu.forward(args)[0]
    buffers = [torch.empty_like(expected), torch.empty(64, 128), torch.empty(64, 128), torch.zeros(20, 64, 512)]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # the plain kernel call: torch's own operations, even torch.zeros, may hang after a fork
        h, h_n, c_n, x_gates = buffers
        w_hh, h0, c0 = (args[k] for k in (4, 6, 7))
        sizes = {"T": 20, "B": 64, "H": 128, "P": 128, "reverse": False, "double": False, "threads": 2}
        native.load().lstm_forward(**sizes, h=h, h_n=h_n, c_n=c_n, x_gates=x_gates, w_hh=w_hh, h0=h0, c0=c0)
        os.write(writing, b"done")
        os._exit(0)
    os.close(writing)
    import select

    ready, _, _ = select.select([reading], [], [], 30)
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    assert ready
    assert os.read(reading, 4) == b"done"


def test_ids_out_of_range_are_named() -> None:
    ids = torch.tensor([[0, 1], [2, 9], [0, 0]])
    args = _layer(3, 2, 7)._replace(x=None, ids=ids, w_x=torch.randn(5, 28), bias=None)
    with pytest.raises(IndexError, match="ids hold 9, expected 0 to 4"):
        torch.ops.fastlstm.lstm_forward(*args)
