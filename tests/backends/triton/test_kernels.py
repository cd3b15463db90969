"""The Triton kernels in Triton's interpreter against the definition.

The interpreter runs the shipped kernels with numpy on the CPU: it proves indexing, masks and arithmetic, not layouts,
barriers or timing, for which see test_compile.py. It takes about 20 ms for a step, so few cases are tried here in
every kernel and type; the slow tests go through the whole table. Where the rule of accuracy wants many draws of a
case (`accuracy.draws`), fewer steps or more rows stand in for it: `_affordable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import util

import pytest

if util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm.backends import load
from fastlstm.backends.triton.padding import to_tf32
from fastlstm.ops.arguments import Grads, OpInputs, Saved, Spec
from fastlstm.testing import accuracy, cases
from tests.backends.triton.interpreter import apply

TRITON = load("triton")
KERNELS = ("single_block", "streamed", "per_step")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
# H a multiple of 16 reaches the kernels as it is: tails of tiles (64, 32) and of the sum, with NaN right behind them
TAILS = [
    cases.Case("T3B5H16", 3, 5, 4, 16, 16),
    cases.Case("T4B18H48-reverse-reset", 4, 18, 3, 48, 48, reverse=True, reset=True),
    cases.Case("T3B3H80-packed-ids", 3, 3, 0, 80, 80, V=5, ids=True, lengths=(2, 3, 1)),
    cases.Case("T2B2H144-packed-reverse", 2, 2, 3, 144, 144, lengths=(1, 2), reverse=True),
    cases.Case("T3B2H80P48-projection", 3, 2, 3, 80, 48, projection=True),
]


def _affordable(case: cases.Case, longest: int = 65) -> cases.Case:
    """The case with rows enough for one draw where it is long, or with three steps where it is one row of one unit.

    longest: the most steps that are left of a long case.
    """
    if case.T * len(accuracy.draws(case)) <= 65 or case.B == 0:
        return case
    B, T = (16, min(case.T, longest)) if case.T > 7 else (case.B, 3)
    lengths = tuple(1 + (5 * b + T - 1) % T for b in range(B)) if case.packed else ()
    return replace(case, id=f"T{T}B{B}{case.id[case.id.index('I') :]}", T=T, B=B, lengths=lengths)


SHORT = [*TAILS, *map(_affordable, cases.SHORT)]
FULL = [_affordable(case, 17) for case in cases.FULL]


def test_shortened_cases_keep_every_option_and_size_but_t_and_b() -> None:
    assert max(case.T * len(accuracy.draws(case)) for case in SHORT + FULL if case.B) <= 65
    assert (max(case.T for case in SHORT), max(case.T for case in FULL)) == (65, 17)
    for before, after in zip(cases.FULL, FULL, strict=True):
        assert replace(after, id=before.id, T=before.T, B=before.B, lengths=before.lengths) == before
        assert (max(after.lengths, default=after.T), len(after.lengths)) == (after.T, after.B if before.packed else 0)


@contextmanager
def _multiplying(math: str) -> Iterator[None]:
    """How float32 is multiplied on a GPU, "tf32" or "ieee"; here always exactly, but by other tiles."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = math != "ieee"
    yield
    torch.backends.cudnn.allow_tf32 = before


def _spec(case: cases.Case, dtype: torch.dtype, save: int) -> Spec:
    i = cases.make(case, dtype)
    return OpInputs(*i, case.reverse, save).spec()


def _kernels(case: cases.Case, dtype: torch.dtype) -> tuple[str, ...]:
    """The kernels that can run a case."""
    if case.projection:
        return ("per_step",)
    return KERNELS[(64 if dtype == torch.float32 else 128) < case.H :]


def _check(case: cases.Case, dtype: torch.dtype, kernel: str, save: int, math: str = "half") -> None:
    spec = _spec(case, dtype, save)
    with TRITON.force(kernel), _multiplying(math):
        assert TRITON.unsupported_reason(spec) is None
        assert TRITON.describe(spec).startswith(f"triton: {kernel} ({math}), ")
        accuracy.check_backend(TRITON, case, dtype, save=save)


def _turn(case: cases.Case, dtype: torch.dtype, turn: int) -> tuple[str, int]:
    """A kernel and what is saved (1 or 2) for a case, in rotation."""
    kernels = _kernels(case, dtype)
    return kernels[turn % len(kernels)], 1 + turn // 2 % 2


@pytest.mark.parametrize("at", range(len(SHORT)), ids=lambda at: SHORT[at].id)
def test_float32(at: int) -> None:
    _check(SHORT[at], torch.float32, *_turn(SHORT[at], torch.float32, at), "tf32")


# the same kernels on tiles of 4 rows: not for the cases that have many of them or many steps
@pytest.mark.parametrize("at", [k for k, c in enumerate(SHORT) if c.B < 20 and c.T <= 5], ids=lambda at: SHORT[at].id)
def test_float32_without_tf32(at: int) -> None:
    _check(SHORT[at], torch.float32, *_turn(SHORT[at], torch.float32, at + 1), "ieee")


@pytest.mark.parametrize("at", range(len(SHORT)), ids=lambda at: SHORT[at].id)
def test_half_types(at: int) -> None:
    dtype = TYPES[1 + at % 2]
    _check(SHORT[at], dtype, *_turn(SHORT[at], dtype, at + 1))


@pytest.mark.slow
@pytest.mark.parametrize("at", range(len(FULL)), ids=lambda at: FULL[at].id)
def test_full_table(at: int) -> None:
    """Every crossing of options with every size; kernel, type and what is saved in rotation."""
    case, turn = FULL[at], at + at // 64  # 64 crossings of each size: each meets every kernel and type
    dtype = TYPES[turn // 3 % 3]
    math = "tf32" if dtype == torch.float32 else "half"
    _check(case, dtype, *_turn(case, dtype, turn), math)


@pytest.mark.slow
@pytest.mark.parametrize("case", TAILS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_tails_in_every_kernel(case: cases.Case, dtype: torch.dtype, kernel: str) -> None:
    if kernel not in _kernels(case, dtype):
        with TRITON.force(kernel):
            assert "projection" in TRITON.unsupported_reason(_spec(case, dtype, 1)) or case.H > 64
        return
    _check(case, dtype, kernel, 1, "tf32" if dtype == torch.float32 else "half")


class _Canaries(TorchDispatchMode):
    """Puts whatever is allocated without values between NaN, and looks afterwards whether the NaN is still there."""

    EMPTY = ("aten::empty.memory_format", "aten::new_empty", "aten::empty_like")

    def __init__(self) -> None:
        super().__init__()
        self.buffers = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensor = func(*args, **(kwargs or {}))
        if func._schema.name + (f".{func._overloadname}" if func._overloadname != "default" else "") not in self.EMPTY:
            return tensor
        if not tensor.is_floating_point():
            return tensor
        buffer = torch.full((tensor.numel() + 128,), float("nan"), dtype=tensor.dtype)
        self.buffers.append((buffer, tensor.numel()))
        return buffer[64 : 64 + tensor.numel()].view(tensor.shape)

    def check(self) -> None:
        assert self.buffers
        for buffer, size in self.buffers:
            assert torch.cat([buffer[:64], buffer[64 + size :]]).isnan().all()


@pytest.mark.parametrize(
    ("kernel", "case"), [*zip(KERNELS, TAILS, strict=False), *zip(KERNELS[1:], TAILS[3:], strict=True)]
)
def test_nothing_is_written_outside(kernel: str, case: cases.Case) -> None:
    inputs, grads = cases.make(case, torch.float32), cases.make_grads(case, torch.float32)
    with TRITON.force(kernel), _Canaries() as canaries:
        op_inputs = OpInputs(*inputs, case.reverse, 1)
        h, c, gates, _, _ = TRITON.forward(op_inputs)
        TRITON.backward(op_inputs, Saved(h, c, gates), Grads(*grads))
    canaries.check()


@pytest.mark.parametrize("kernel", KERNELS)
def test_missing_gradients_are_zero(kernel: str) -> None:
    """None for dh, dc, dh_n, dc_n, alone and together, is what zeros are."""
    case = TAILS[0]
    inputs = OpInputs(*cases.make(case, torch.float32), False, 1)
    grads = cases.make_grads(case, torch.float32)
    with TRITON.force(kernel):
        h, c, gates, _, _ = TRITON.forward(inputs)
        for kept in ((), (0,), (1,), (2, 3)):
            partial = [g if k in kept else None for k, g in enumerate(grads)]
            zeros = [g if k in kept else torch.zeros_like(g) for k, g in enumerate(grads)]
            actual = TRITON.backward(inputs, Saved(h, c, gates), Grads(*partial))
            expected = TRITON.backward(inputs, Saved(h, c, gates), Grads(*zeros))
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_inference_keeps_nothing(kernel: str) -> None:
    inputs = cases.make(TAILS[1], torch.float32)
    with TRITON.force(kernel):
        h, c, gates, h_n, c_n = TRITON.forward(OpInputs(*inputs, True, 0))
        kept = TRITON.forward(OpInputs(*inputs, True, 1))
    assert c.shape == gates.shape == (0,)
    assert all(torch.equal(a, b) for a, b in zip((h, h_n, c_n), (kept[0], kept[3], kept[4]), strict=True))


def test_results_are_the_same_bits_again() -> None:
    for kernel in KERNELS:
        inputs = cases.make(TAILS[1], torch.bfloat16)
        with TRITON.force(kernel):
            first, second = (TRITON.forward(OpInputs(*inputs, True, 1)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_unaligned_memory_gives_the_same_bits() -> None:
    """Addresses that are no multiple of 16 bytes are copied, so that one compiled kernel serves."""
    case = TAILS[0]
    inputs = cases.make(case, torch.float32)
    expected = TRITON.forward(OpInputs(*inputs, False, 1))

    def shift(v: torch.Tensor | None) -> torch.Tensor | None:
        if v is None:
            return None
        moved = torch.empty(v.numel() + 1, dtype=v.dtype)[1:].view(v.shape).copy_(v)
        assert moved.data_ptr() % 16
        return moved

    actual = TRITON.forward(OpInputs(*(shift(v) for v in inputs), False, 1))
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_huge_pre_activations_saturate(kernel: str) -> None:
    """±1e30 and ±inf at the gates: outputs are finite and exact, gradients are zero, nothing is NaN."""
    H, infinity = 16, float("inf")
    table = torch.tensor([[1e30, -1e30, infinity, -infinity]]).repeat_interleave(H, 1)  # i, f, g, o
    ids, zeros = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, H)
    inputs = OpInputs(None, ids, table, None, torch.zeros(4 * H, H), None, zeros, zeros + 5, None, None, None, False, 1)
    with TRITON.force(kernel):
        h, c, gates, h_n, c_n = TRITON.forward(inputs)
        d_gates, _, dh0, dc0 = TRITON.backward(inputs, Saved(h, c, gates), Grads(torch.ones_like(h), None, None, None))
    assert torch.equal(gates[0, 0].view(4, H)[:, 0], torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert torch.equal(c, torch.ones_like(c))
    assert torch.equal(c_n, c[-1])
    assert torch.equal(h, torch.zeros_like(h))
    assert torch.equal(h_n, h[-1])
    for gradient in (d_gates, dh0, dc0):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_errors_and_limits_of_sigmoid_and_tanh() -> None:
    """Within 3 eps (sigmoid, whose exp takes a rounded -x: 3 (1 + |x|) eps), exact limits, NaN stays NaN."""
    special = torch.tensor([0.0, -0.0, 100.0, -100.0, float("inf"), float("-inf"), 1e-30, -1e-40, 0.55, -0.55])
    x = torch.cat(
        [special, torch.linspace(-20, 20, 6001), torch.linspace(-0.7, 0.7, 3001), torch.logspace(-20, 2, 800)]
    )
    for name, exact, allowed in (("tanh", torch.tanh, 3.0), ("sigmoid", torch.sigmoid, 3.0)):
        actual, expected = apply(name, x), exact(x.double())
        ulp = torch.finfo(torch.float32).eps * expected.abs().clamp(min=2.0**-126)
        grown = 1 + (x.double().abs() if name == "sigmoid" else 0)
        assert ((actual.double() - expected).abs() <= allowed * ulp * grown)[expected.abs() > 1e-37].all(), name
    assert apply("tanh", torch.tensor([float("inf"), float("-inf"), 100.0, -100.0])).tolist() == [1, -1, 1, -1]
    assert apply("sigmoid", torch.tensor([float("inf"), float("-inf"), 100.0])).tolist() == [1, 0, 1]
    assert apply("sigmoid", torch.tensor([-100.0])).item() < 1e-43
    for name in ("tanh", "sigmoid"):
        assert apply(name, torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_to_nearest_even(dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (4000,), dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(-300, 300, dtype=torch.int32) << 15) + 0x3F800000  # halfway between bfloat16 neighbours
    x = torch.cat([bits, ties]).view(torch.float32)
    x = torch.cat([x, torch.tensor([float("inf"), float("-inf"), 0.0, -0.0, 65504.0, 65520.0, 3.4e38])])
    x = x[~(x.isnan() | ((x.abs() < 2.0**-126) & (x != 0)))]  # the interpreter's own cast loses subnormal bfloat16
    assert torch.equal(apply(str(dtype).removeprefix("torch."), x), x.to(dtype).float())


def test_rounding_to_tf32() -> None:
    """Adding half of the last bit that a tensor core keeps makes its cutting off a rounding; inf and NaN stay."""
    bits = torch.randint(-(2**31), 2**31 - 1, (4000,), dtype=torch.int64).to(torch.int32)
    special = torch.tensor([0x7FFFFFFF, -1, 0x7F800000, -0x800000, 0, 0x3F801000, 0x3F803000])
    bits = torch.cat([bits, special.to(torch.int32)])
    bits |= bits.view(torch.float32).isnan().int() << 22  # the NaN of arithmetic, which does not lie in the last bits
    x = bits.view(torch.float32)
    kept = (apply("tf32", x).view(torch.int32) & -0x2000).view(torch.float32)  # what a tensor core reads
    assert torch.equal(kept.isnan(), x.isnan())
    x, kept = x[~x.isnan()], kept[~x.isnan()]
    assert torch.equal(kept, to_tf32(x))
    normal = x.isfinite() & kept.isfinite() & (x.abs() >= 2.0**-126)
    assert ((kept.double() - x.double()).abs() <= 2.0**-11 * x.double().abs())[normal].all()
    assert kept[-2:].tolist() == [1 + 2.0**-10, 1 + 2.0**-9]
    assert to_tf32(torch.tensor([float("nan")])).isnan().all()
