"""One table of cases for tests, gradients and timings: what one call of the op can be asked to do, crossed with sizes.

`SHORT` covers every triple of options once and the special shapes; `FULL` crosses all options with all sizes.
`make(case, dtype)` draws the tensors of a case, `make_grads` the gradients that flow into its outputs. Values are drawn
in float64 and rounded, so a case holds the same numbers in every type. With `canary=True` every input lies inside a
larger buffer full of NaN (ids: far out of range), so that a read outside it shows in the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm.ops.arguments import Grads
from fastlstm.ops.reference import cell_type

_CANARY_ID = -(2**40)
_PAD = 64  # scalars of canary on either side


@dataclass(frozen=True)
class Case:
    """One call of the op: one layer in one direction. P is the width of h (H without projection), V is 0 without ids.

    `lengths` (empty = dense) are as a user would give them, unsorted; the op sees them sorted, longest first.
    """

    id: str
    T: int
    B: int
    I: int
    H: int
    P: int
    V: int = 0
    lengths: tuple[int, ...] = ()
    reverse: bool = False
    reset: bool = False
    ids: bool = False
    initial: bool = True
    projection: bool = False
    bias: bool = True
    noncontiguous: bool = False

    @property
    def packed(self) -> bool:
        return bool(self.lengths)

    @property
    def N(self) -> int:
        """Rows of x and h."""
        return sum(self.lengths) if self.packed else self.T * self.B

    @property
    def batch_sizes(self) -> Tensor | None:
        """(T,) int64 on the CPU: how many sequences are still running at each step; None when dense."""
        if not self.packed:
            return None
        return torch.tensor([sum(n > t for n in self.lengths) for t in range(self.T)], dtype=torch.int64, device="cpu")

    def __str__(self) -> str:
        return self.id


class Inputs(NamedTuple):
    """The tensor arguments of the op, in its order (reverse and save follow)."""

    x: Tensor | None
    ids: Tensor | None
    w_x: Tensor
    bias: Tensor | None
    w_hh: Tensor
    w_hr: Tensor | None
    h0: Tensor
    c0: Tensor
    batch_sizes: Tensor | None
    offsets: Tensor | None
    reset: Tensor | None

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same (already rounded) values in another floating type; c0 in that type's cell type."""
        cast = {
            name: t.to(cell_type(dtype) if name == "c0" else dtype) if t is not None and t.is_floating_point() else t
            for name, t in self._asdict().items()
        }
        return Inputs(**cast)


def rounded(grads: Grads, dtype: torch.dtype) -> Grads:
    """Gradients in a type; those of c and c_n in its cell type."""
    cell = cell_type(dtype)
    return Grads(grads.dh.to(dtype), grads.dc.to(cell), grads.dh_n.to(dtype), grads.dc_n.to(cell))


def make(
    case: Case, dtype: torch.dtype, seed: int = 0, *, device: str | torch.device = "cpu", canary: bool = False
) -> Inputs:
    """The tensors of a case, drawn from `seed` in float64 and rounded to `dtype` (c0: its cell type)."""
    gen = torch.Generator().manual_seed(seed)
    scale = 1.5 / max(case.H, 1) ** 0.5

    def draw(*shape: int, spread: float = 1.0, to: torch.dtype = dtype) -> Tensor:
        value = (torch.rand(*shape, generator=gen, dtype=torch.float64, device="cpu") * 2 - 1) * spread
        return _place(value.to(to).to(device), case.noncontiguous, canary)

    rows = (case.N,) if case.packed else (case.T, case.B)
    x = None if case.ids else draw(*rows, case.I, spread=1.7)
    kind = {"generator": gen, "device": "cpu"}
    ids = torch.randint(case.V, rows, dtype=torch.int64, **kind) if case.ids else None
    ids = None if ids is None else _place(ids.to(device), False, canary)
    w_x = draw(case.V, 4 * case.H, spread=1.5) if case.ids else draw(4 * case.H, case.I, spread=scale)
    bias = draw(4 * case.H, spread=scale) if case.bias and not case.ids else None
    w_hh = draw(4 * case.H, case.P, spread=scale)
    w_hr = draw(case.P, case.H, spread=scale) if case.projection else None
    cell = cell_type(dtype)
    h0 = draw(case.B, case.P, spread=float(case.initial))
    c0 = draw(case.B, case.H, spread=1.5 * case.initial, to=cell)
    sizes = case.batch_sizes
    offsets = None if sizes is None else (sizes.cumsum(0) - sizes).to(device)
    reset = None
    if case.reset:
        reset = (torch.rand(rows, dtype=torch.float32, **kind) < 0.3).to(device)
    return Inputs(x, ids, w_x, bias, w_hh, w_hr, h0, c0, sizes, offsets, reset)


def make_grads(case: Case, dtype: torch.dtype, seed: int = 1, *, device: str | torch.device = "cpu") -> Grads:
    """Random gradients for h, c, h_n, c_n of a case; those of c and c_n in the cell type."""
    gen = torch.Generator().manual_seed(seed)
    rows = (case.N,) if case.packed else (case.T, case.B)
    shapes = ((*rows, case.P), (*rows, case.H), (case.B, case.P), (case.B, case.H))
    kind = {"generator": gen, "dtype": torch.float64, "device": "cpu"}
    drawn = (torch.randn(shape, **kind).to(dtype).to(device) for shape in shapes)
    return rounded(Grads(*drawn), dtype)


def _place(value: Tensor, noncontiguous: bool, canary: bool) -> Tensor:
    """`value` with a spare column between its last elements if non-contiguous, inside a canary buffer if asked."""
    fill = float("nan") if value.is_floating_point() else _CANARY_ID
    step = 2 if noncontiguous and value.dim() else 1
    if step == 1 and not canary:
        return value
    buffer = torch.full((value.numel() * step + 2 * _PAD,), fill, dtype=value.dtype, device=value.device)
    strides, width = [], step
    for size in reversed(value.shape):
        strides.append(width)
        width *= max(size, 1)
    placed = buffer.as_strided(value.shape, strides[::-1], _PAD)
    return placed.copy_(value)


# T, B, I, H: steps, batch, input and hidden size
SIZES = (
    (7, 3, 3, 7),
    (3, 7, 7, 65),
    (1, 7, 65, 3),
    (5, 65, 1, 7),
    (2, 3, 129, 129),
    (65, 1, 3, 3),
    (7, 1, 7, 1),
    (3, 129, 3, 5),
)
_OPTIONS = ("packed", "reverse", "reset", "projection", "initial", "ids")


def _ragged(T: int, B: int) -> tuple[int, ...]:
    """B unsorted lengths between 1 and T, the longest T."""
    return tuple(T - (b + 1) * 5 % (2 * T) // 2 if (b + 1) % B else T for b in range(B))


def _case(size: tuple[int, int, int, int], on: dict[str, bool], **other: object) -> Case:
    T, B, I, H = size
    if on["projection"]:
        H = max(H, 3)
    values = {
        "T": T,
        "B": B,
        "I": 0 if on["ids"] else I,
        "H": H,
        "P": (H + 1) // 2 if on["projection"] else H,
        "V": max(I, 2) if on["ids"] else 0,
        "lengths": _ragged(T, B) if on["packed"] else (),
        **{name: on[name] for name in _OPTIONS if name != "packed"},
        **other,
    }
    words = [name for name in _OPTIONS if on[name]] + [k for k in ("noncontiguous",) if other.get(k)]
    words += ["nobias"] if other.get("bias") is False else []
    shape = f"T{T}B{B}I{I}H{H}"
    return Case(id="-".join([shape, *words]), **values)


def _crossed(sizes: Iterable[tuple[int, int, int, int]]) -> list[Case]:
    flags = product((False, True), repeat=len(_OPTIONS))
    return [_case(size, dict(zip(_OPTIONS, on, strict=True))) for size, on in product(sizes, list(flags))]


def _triples() -> list[Case]:
    """16 cases in which every triple of options takes all 8 values: a 2^(6-2) design, sizes in rotation."""
    cases = []
    for k, (a, b, c, d) in enumerate(product((False, True), repeat=4)):
        on = dict(zip(_OPTIONS, (a, b, c, d, a ^ b ^ c, b ^ c ^ d), strict=True))
        cases.append(_case(SIZES[(k * 3 + k // 8) % len(SIZES)], on))
    return cases


def _special() -> list[Case]:
    def on(*names: str) -> dict[str, bool]:
        return {name: name in names for name in _OPTIONS}

    return [
        _case((7, 0, 3, 5), on("initial")),
        _case((7, 0, 3, 5), on("initial", "reverse", "reset", "ids")),
        _case((0, 3, 3, 5), on("initial", "projection")),
        _case((1, 1, 1, 1), on()),
        _case((7, 3, 5, 7), on("initial"), noncontiguous=True),
        _case((7, 3, 5, 7), on("initial", "packed", "reverse", "projection"), noncontiguous=True),
        _case((5, 7, 3, 16), on("initial"), bias=False),
        _case((5, 7, 3, 16), on("packed", "reset"), bias=False, noncontiguous=True),
    ]


SPECIAL = _special()
SHORT = _triples() + SPECIAL
FULL = _crossed(SIZES) + SPECIAL


def describe(case: Case) -> str:
    """The settings of a case that differ from the defaults, for a failure message."""
    changed = (f"{f.name}={getattr(case, f.name)!r}" for f in fields(case) if getattr(case, f.name) != f.default)
    return ", ".join(changed)
