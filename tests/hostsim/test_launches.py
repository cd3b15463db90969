"""Launches that share memory or a device, launches that go wrong, and what a call asks of torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm.backends.base import BackendError
from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.backends.cuda import launch_backward
from fastlstm.backends.cuda import status as cuda_status
from fastlstm.ops import reference
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from fastlstm.testing.cases import Case, make, make_grads
from tests.hostsim import backend as hostsim
from tests.hostsim.shapes import (
    BF16,
    COOPERATIVE,
    F32,
    LEAN,
    PER_STEP,
    SINGLE_BLOCK,
    TF32,
    Shape,
    dense,
    dtype_of,
    plan_of,
    settings,
)

CASE = dense(4, 9, 40, initial=True, reset=True)
SHAPES = [SINGLE_BLOCK[1], COOPERATIVE[1], LEAN[2]]
IDS = ["single_block", "cooperative", "lean"]


def _float32(shape: Shape) -> str:
    """How float32 is multiplied on a shape: `lean` has tensor cores only."""
    return TF32 if shape.kernel == "lean" else F32


class Recorder:
    """Launchers that remember what they launched, as a CUDA graph does."""

    def __init__(self, lib):
        self.lib, self.calls = lib, []

    def __getattr__(self, name):
        launch = getattr(self.lib, name)
        if name in ("ForwardArgs", "BackwardArgs"):
            return launch

        def recording(*args):
            kept = [type(a)(a) if isinstance(a, (self.lib.ForwardArgs, self.lib.BackwardArgs)) else a for a in args]
            self.calls.append((launch, kept))
            return launch(*args)

        return recording

    def replay(self):
        for launch, args in self.calls:
            launch(*args)


def _copies(tensors):
    return [t.clone() for t in tensors]


def _same(a, b):
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_a_second_launch_on_one_workspace_gives_the_same_bits(hostsim_library, monkeypatch, shape):
    """A CUDA graph's second replay finds its memory full of the first one's results; nothing may depend on that."""
    monkeypatch.setattr(cuda_launch, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(cuda_launch, "_CHUNK_STEPS", 0)
    math = _float32(shape)
    v, grads, plan = make(CASE, torch.float32), make_grads(CASE, torch.float32), plan_of(shape, CASE, math)
    with settings(shape, CASE, math, 0), hostsim.Simulated(hostsim_library) as rt:
        rt.lib = Recorder(rt.lib)
        out = cuda_launch.forward(rt, plan, OpInputs(*v, False, 2))
        first = _copies(out)
        out[4].copy_(v.c0)  # comes in as the state
        rt.lib.replay()
        assert len(rt.lib.calls) == CASE.T
        assert _same(first, out)
    h, c, gates = _states(v)
    with settings(shape, CASE, math, 1), hostsim.Simulated(hostsim_library) as rt:
        rt.lib = Recorder(rt.lib)
        results = launch_backward.backward(
            rt, plan, OpInputs(*v, False, 1), Saved(h, c, gates), Grads(grads.dh, grads.dc, None, None)
        )
        first = _copies(results)
        results[2].zero_(), results[3].zero_()
        rt.lib.replay()
        assert _same(first, results)


def _states(v):
    h, c, gates, _, _ = reference.forward(*v, False, 1)
    return h, c, gates


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "pair",
    [
        (SINGLE_BLOCK[1], SINGLE_BLOCK[3]),
        (COOPERATIVE[1], COOPERATIVE[1]),
        (SINGLE_BLOCK[0], COOPERATIVE[3]),
        (LEAN[0], LEAN[2]),
    ],
    ids=lambda pair: "-".join(shape.kernel for shape in pair),
)
def test_two_launches_at_once_give_the_bits_of_one_after_the_other(hostsim_library, pair, seed):
    """Two directions on two streams: the same bits as one after the other, and no deadlock."""
    v = make(CASE, torch.bfloat16)
    plans = [plan_of(shape, CASE, BF16) for shape in pair]
    alone = []
    for plan, reverse in zip(plans, (False, True), strict=True):
        with settings(pair[0], CASE, BF16, seed), hostsim.Simulated(hostsim_library) as rt:
            alone.append(_copies(cuda_launch.forward(rt, plan, OpInputs(*v, reverse, 1))))
    with settings(pair[0], CASE, BF16, seed), hostsim.Simulated(hostsim_library) as rt:
        other = hostsim.Simulated(hostsim_library, stream=2)
        hostsim_library.hold()
        both = [
            cuda_launch.forward(r, plan, OpInputs(*v, reverse, 1))
            for r, plan, reverse in zip((rt, other), plans, (False, True), strict=True)
        ]
        hostsim_library.release()
        assert all(_same(a, b) for a, b in zip(alone, both, strict=True))


@pytest.mark.parametrize("shape", [COOPERATIVE[0], LEAN[0], LEAN[2]], ids=["cooperative", "lean", "lean in parts"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_block_that_never_comes_ends_in_nan_and_an_error(hostsim_library, shape, backward):
    """The wait ends: NaN in the results, and the next call says why. The one after it works."""
    math = _float32(shape)
    case = dense(2, 2, 80 if shape == LEAN[2] else 40, initial=True)
    v, grads, plan = make(case, torch.float32), make_grads(case, torch.float32), plan_of(shape, case, math)
    broken = (plan.backward if backward else plan.forward).t
    broken.unit_blocks -= broken.gate_splits
    hostsim_library.clock_jumps(True)
    try:
        with settings(shape, case, math, 0):
            with hostsim.Simulated(hostsim_library) as rt:
                if backward:
                    results = launch_backward.backward(
                        rt, plan, OpInputs(*v, False, 1), Saved(*_states(v)), Grads(*grads)
                    )
                else:
                    results = cuda_launch.forward(rt, plan, OpInputs(*v, False, 1))
                assert results[0].isnan().any()
                assert rt.status.item() == cuda_status.TIMED_OUT
            with pytest.raises(
                BackendError, match=rf"waited {hostsim_library.cuda.timeout_ms / 1000:g} s for each other"
            ):
                hostsim.BACKEND.forward(OpInputs(*v, False, 1))
            assert not hostsim.BACKEND.forward(OpInputs(*v, False, 1))[0].isnan().any()
    finally:
        hostsim_library.clock_jumps(False)


@pytest.mark.parametrize("shape", [PER_STEP, *SHAPES], ids=["per_step", *IDS])
@pytest.mark.parametrize("math", [F32, BF16])
def test_an_id_outside_the_table_is_nan_and_an_error_of_the_next_call(hostsim_library, shape, math):
    """NaN where it counts and nowhere else; the next call says why, and the one after it works."""
    math = _float32(shape) if math == F32 else math
    case = Case(id="ids", T=3, B=3, I=0, H=40, P=40, V=5, ids=True)
    for wrong in (-1, 5, 2**40):
        v = make(case, dtype_of(math))
        v.ids[1, 2] = wrong
        with settings(shape, case, math, 0):
            h, _, gates, h_n, _ = hostsim.BACKEND.forward(OpInputs(*v, False, 1))
            assert h[1:, 2].isnan().all()
            assert gates[1, 2].isnan().all()
            assert h_n[2].isnan().all()
            assert not h[0].isnan().any()
            assert not h[:, :2].isnan().any()
            with pytest.raises(IndexError, match="had ids outside its table"):
                hostsim.BACKEND.forward(OpInputs(*v, False, 1))
            v.ids[1, 2] = 0
            assert not hostsim.BACKEND.forward(OpInputs(*v, False, 1))[0].isnan().any()


@pytest.mark.parametrize("shape", [PER_STEP, *SHAPES], ids=["per_step", *IDS])
def test_nan_and_infinity_pass_through(hostsim_library, shape):
    """A NaN is no unset word: it arrives, nobody waits for it, and only its own sequence has it.

    The input side is torch's product here; with AMX its bfloat16 spreads a NaN to the row before where the width is odd.
    """
    case = replace(CASE, I=4)
    for math in (_float32(shape), BF16):
        v = make(case, dtype_of(math))
        v = v._replace(reset=None)
        v.x[1, 2, 0] = float("nan")
        v.x[1, 3, 0] = float("inf")
        with settings(shape, case, math, 0):
            h = hostsim.BACKEND.forward(OpInputs(*v, False, 1))[0]
        assert h[1:, 2].isnan().all()
        assert not h[0].isnan().any()
        assert not h[:, [0, 1, 4]].isnan().any()
        assert _status() == 0


@pytest.mark.parametrize("shape", LEAN[:2], ids=["one tile", "two tiles"])
@pytest.mark.parametrize("math", [TF32, BF16])
def test_nan_and_infinity_in_the_first_state_and_the_input_are_where_the_definition_has_them(
    hostsim_library, shape, math
):
    """`lean` multiplies h0 as it comes; what it pads with is zero on both sides, or infinity would become NaN."""
    case = dense(3, 9, 40, initial=True)
    v = make(replace(case, I=4), dtype_of(math))
    v.h0[1, 3], v.h0[2, 39], v.h0[4, 0] = float("nan"), float("inf"), float("-inf")
    v.c0[5, 7], v.c0[6, 39] = float("inf"), float("nan")
    v.x[1, 7, 0], v.x[2, 8, 0] = float("nan"), float("inf")
    with settings(shape, case, math, 0):
        out = hostsim.BACKEND.forward(OpInputs(*v, False, 1))
    for mine, right in zip(out, reference.forward(*v.to(torch.float64), False, 1), strict=True):
        assert mine.isnan().equal(right.isnan())
        assert mine.isinf().equal(right.isinf())
        torch.testing.assert_close(mine.double(), right, rtol=0.02, atol=0.02, equal_nan=True)
    assert _status() == 0


def _status() -> int:
    return int(hostsim._status[0])


class OperatorNames(TorchDispatchMode):
    """The operators a call uses."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [PER_STEP, *SHAPES], ids=["per_step", *IDS])
def test_nothing_waits_for_the_device(hostsim_library, shape):
    """No operator whose result the host must see, so that a call can be captured in a CUDA graph."""
    v, grads = make(CASE, torch.float32), make_grads(CASE, torch.float32)
    math = _float32(shape)
    plan = plan_of(shape, CASE, math)
    with settings(shape, CASE, math, 0), hostsim.Simulated(hostsim_library) as rt, OperatorNames() as used:
        h, c, gates, _, _ = cuda_launch.forward(rt, plan, OpInputs(*v, False, 1))
        launch_backward.backward(rt, plan, OpInputs(*v, False, 1), Saved(h, c, gates), Grads(*grads))
    waits = {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "unique",
        "repeat_interleave",
        "is_nonzero",
        "item",
    }
    assert used.names
    assert not used.names & waits
