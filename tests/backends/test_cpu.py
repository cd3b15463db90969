"""The CPU backend against the definition, on every instruction set of this machine and with one and two threads."""

from __future__ import annotations

import os
import threading

import judge
import pytest
import torch

from benchmarks import cases
from fastlstm import native
from fastlstm.backends import cpu

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
ISAS = native.load().isa_names() if native.why_not() is None else []


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest):
    """Force one instruction set for a test."""
    module, before = native.load(), native.load().isa()
    module.set_isa(request.param)
    yield request.param
    module.set_isa(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    """Run with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
def test_short_table(case: cases.Case, isa: str, threads: int) -> None:
    judge.check_backend(cpu, case, torch.float32)
    assert native.load().isa() == isa


@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
def test_short_table_in_float64(case: cases.Case, isa: str, threads: int) -> None:
    """As close to the definition as the definition is to itself when its inputs move by one unit in the last place.

    In float64 the definition rounds like what it judges, and torch's own composition is the same operations again: the
    distance between them is zero and says nothing. What rounding can do to a case is what this measures (8 draws).
    """
    inputs = cases.make(case, torch.float64, 0, canary=True)
    inputs = inputs._replace(**{k: v.contiguous() for k, v in inputs._asdict().items() if v is not None})
    grads = cases.make_grads(case, torch.float64, 1)
    h, c, gates, h_n, c_n = cpu.forward(*inputs, case.reverse, 1)
    found = cpu.backward(*grads, *inputs, case.reverse, 1, h, c, gates)
    got = dict(zip(judge.OP_OUTPUTS, (h, c, h_n, c_n, *found), strict=True))
    expected, moved = judge.expected(case, torch.float64), [_moved_by_one_unit(case) for _ in range(8)]
    for name, value in got.items():
        if expected[name] is not None:
            furthest = max((m[name] for m in moved), key=lambda v, ref=expected[name]: judge.error(v, ref))
            judge.check(f"{case.id} {name}", value, expected[name], furthest)


def _moved_by_one_unit(case: cases.Case) -> dict:
    """What the definition gives in float64 on inputs that differ in their last place."""
    make, unit = cases.make, torch.finfo(torch.float64).eps

    def nudge(v: torch.Tensor) -> torch.Tensor:
        return v * (1 + unit * (2 * torch.randint(0, 2, v.shape) - 1)) if v.is_floating_point() else v

    def made(*args, **kwargs):
        drawn = make(*args, **kwargs)
        return drawn._replace(**{k: nudge(v) for k, v in drawn._asdict().items() if v is not None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "make", made)
        return judge.expected.__wrapped__(case, torch.float64)


@pytest.mark.parametrize("case", cases.FULL, ids=lambda case: case.id)
def test_full_table(case: cases.Case) -> None:
    judge.check_backend(cpu, case, torch.float32)


@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(case: cases.Case, dtype: torch.dtype) -> None:
    judge.check_backend(cpu, case, dtype)


@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
def test_recomputed_gates(case: cases.Case) -> None:
    judge.check_backend(cpu, case, torch.float32, save=2)


def _layer(T: int, B: int, H: int) -> tuple:
    """Arguments of a dense forward call."""
    x, w_x, bias, w_hh = (
        torch.randn(T, B, H),
        torch.randn(4 * H, H) / 8,
        torch.randn(4 * H) / 8,
        torch.randn(4 * H, H) / 8,
    )
    return x, None, w_x, bias, w_hh, None, torch.randn(B, H), torch.randn(B, H), None, None, None, False, 1


@pytest.mark.parametrize("shape", [(40, 50, 129), (40, 1, 300), (3, 200, 65), (70, 3, 520)], ids=str)
def test_bits_repeat(shape: tuple[int, int, int], threads: int) -> None:
    args = _layer(*shape)
    first, second = cpu.forward(*args), cpu.forward(*args)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_forward_from_several_python_threads() -> None:
    args = _layer(50, 8, 65)
    expected, found = cpu.forward(*args)[0], []
    workers = [threading.Thread(target=lambda: found.append(cpu.forward(*args)[0])) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert all(torch.equal(h, expected) for h in found)


def test_fork_after_use_does_not_hang() -> None:
    args = _layer(20, 64, 128)
    expected = cpu.forward(*args)[0]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        native_h = torch.empty_like(expected)  # plain kernel call: torch's own products may hang after a fork
        h_n, c_n = torch.empty(64, 128), torch.empty(64, 128)
        pointers = [v.data_ptr() for v in (native_h, native_h, native_h, h_n, c_n)]
        pointers = [pointers[0], 0, 0, *pointers[3:], args[0].data_ptr(), 0, args[4].data_ptr(), 0]
        xg = torch.zeros(20, 64, 512)
        pointers[5] = xg.data_ptr()
        pointers.insert(7, 0)
        pointers += [args[6].data_ptr(), args[7].data_ptr()]
        native.load().forward((20, 64, 128, 128, 0, 0, False, 0, 2), pointers, False)
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
    args = list(_layer(3, 2, 7))
    args[0], args[1], args[2], args[3] = None, torch.tensor([[0, 1], [2, 9], [0, 0]]), torch.randn(5, 28), None
    with pytest.raises(IndexError, match="ids hold 9, expected 0 to 4"):
        cpu.forward(*args)
