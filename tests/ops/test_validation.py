"""The one gate before the kernels: no bad argument passes, whatever is wrong with it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlstm.ops import lstm, validation
from fastlstm.ops.arguments import Grads, OpInputs, Saved
from fastlstm.testing.cases import SHORT, Case, make, make_grads

F64 = torch.float64
SMALL = [c for c in SHORT if c.N * c.H < 300]


def _case(*options: str, **sizes: int) -> Case:
    """The smallest case of the short table with exactly these options on."""
    names = ("packed", "reverse", "reset", "projection", "ids")
    fits = [c for c in SHORT if c.N and all(getattr(c, n) == (n in options) for n in names)]
    return min(fits, key=lambda c: c.N * c.H)


# Every way to get one argument wrong: another size, one dimension more or less, another type.
_FAULTS = {
    "longer": lambda v: torch.cat([v, v[:1]]) if v.dim() and v.shape[0] else torch.zeros(3, *v.shape[1:]),
    "shorter": lambda v: v[:-1] if v.dim() and v.shape[0] else None,
    "wider": lambda v: torch.cat([v, v[..., :1]], -1) if v.dim() and v.shape[-1] else None,
    "narrower": lambda v: v[..., :-1] if v.dim() and v.shape[-1] else None,
    "deeper": lambda v: v[None],
    "flatter": lambda v: v[0] if v.dim() and v.shape[0] else None,
    "scalar": lambda v: v.new_zeros(()),
    "empty": lambda v: v.new_zeros(0),
    "typed": lambda v: v.to(torch.float32 if v.dtype == F64 else F64),
    "int": lambda v: v.to(torch.int32),
    "complex": lambda v: v.to(torch.complex64),
    "meta": lambda v: v.to("meta"),
    "sparse": lambda v: v.to_sparse(),
    "negative": lambda v: v - 1000 if v.dtype == torch.int64 else None,
    "huge": lambda v: v + 2**40 if v.dtype == torch.int64 else None,
}


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_bad_argument_reaches_a_kernel(data: st.DataObject) -> None:
    """One argument is wrong: the call raises, and never from within a backend."""
    case = data.draw(st.sampled_from([c for c in SMALL if c.N]))
    inputs = make(case, F64)
    name = data.draw(st.sampled_from([n for n, v in inputs._asdict().items() if v is not None]))
    fault = data.draw(st.sampled_from(sorted(_FAULTS)))
    wrong = _FAULTS[fault](getattr(inputs, name))
    if wrong is None or (wrong.shape == getattr(inputs, name).shape and fault in ("empty", "scalar")):
        return
    free = ("x", "ids") if not (case.packed or case.reset) else ()  # another T, or another V, is no mistake
    if fault in ("longer", "shorter") and name in (*free, *(("w_x",) if case.ids else ())):
        return
    bad = inputs._replace(**{name: wrong})
    with pytest.raises((RuntimeError, IndexError, NotImplementedError)):
        validation.checked_inputs(OpInputs(*bad, case.reverse, 1))
    if fault not in ("meta", "sparse"):
        with pytest.raises((RuntimeError, IndexError)):
            lstm.lstm_forward(*bad, case.reverse, 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bad_gradient_reaches_a_kernel(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([c for c in SMALL if c.N]))
    save = data.draw(st.sampled_from([1, 2]))
    inputs, grads = make(case, F64), make_grads(case, F64)
    h, c, gates, _, _ = lstm.lstm_forward(*inputs, case.reverse, save)
    named = grads._asdict() | {"h": h, "c": c, "gates": gates}
    name, fault = data.draw(st.sampled_from(sorted(named))), data.draw(st.sampled_from(sorted(_FAULTS)))
    wrong = _FAULTS[fault](named[name])
    if wrong is None or (wrong.shape == named[name].shape and fault in ("empty", "scalar")):
        return
    *bad, bad_h, bad_c, bad_gates = (named | {name: wrong}).values()
    checked = validation.checked_inputs(OpInputs(*inputs, case.reverse, save))
    with pytest.raises((RuntimeError, IndexError, NotImplementedError)):
        validation.checked_gradients(checked, Saved(bad_h, bad_c, bad_gates), Grads(*bad))


def test_missing_and_contradicting_arguments() -> None:
    packed, dense = _case("packed"), _case()
    good, token = make(dense, F64), make(next(c for c in SHORT if c.ids and c.N), F64)
    for match, bad in {
        "exactly one of x and ids": (*good._replace(x=None), False, 0),
        "save is 3": (*good, False, 3),
        "bias is given with ids": (*token._replace(bias=torch.zeros(token.w_hh.shape[0], dtype=F64)), False, 0),
        "without w_hr": (*good._replace(w_hh=torch.zeros(good.w_hh.shape[0], 2, dtype=F64)), False, 0),
        "offsets is given without": (*good._replace(offsets=torch.zeros(3, dtype=torch.int64)), False, 0),
        "offsets is None": (*make(packed, F64)._replace(offsets=None), False, 0),
        "not the exclusive cumulative sum": (
            *make(packed, F64)._replace(offsets=make(packed, F64).offsets + 1), False, 0),
        "batch_sizes must fall": (
            *make(packed, F64)._replace(batch_sizes=make(packed, F64).batch_sizes.flip(0)), False, 0),
    }.items():  # fmt: skip
        with pytest.raises(RuntimeError, match=match):
            lstm.lstm_forward(*bad)
    h, c, gates, _, _ = lstm.lstm_forward(*good, False, 0)
    with pytest.raises(RuntimeError, match="save is 0"):
        lstm.lstm_backward(*make_grads(dense, F64), *good, False, 0, h, c, gates)


def test_ids_elsewhere_need_a_table_with_rows() -> None:
    """What they are no one looks at there; that there is nothing to read is known."""
    validation.ids_in_range(torch.empty(2, dtype=torch.int64, device="meta"), 1)
    validation.ids_in_range(torch.empty(0, dtype=torch.int64, device="meta"), 0)
    with pytest.raises(IndexError, match="a table of 0 rows"):
        validation.ids_in_range(torch.empty(2, dtype=torch.int64, device="meta"), 0)
