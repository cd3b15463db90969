"""The ops: opcheck, derivatives of both orders, torch.func."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.func import grad, vmap
from torch.library import opcheck

import fastlstm
from fastlstm.backends import native
from fastlstm.ops import lstm
from fastlstm.testing import accuracy
from fastlstm.testing.cases import SHORT, SPECIAL, Case, cell_type, make, make_grads

F64 = torch.float64
BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(native.unavailable() is not None, reason="no _C")),
]
SMALL = [c for c in SHORT if c.N * c.H < 300]


def _case(*options: str, **sizes: int) -> Case:
    """The smallest case of the short table with exactly these options on."""
    names = ("packed", "reverse", "reset", "projection", "ids")
    fits = [c for c in SHORT if c.N and all(getattr(c, n) == (n in options) for n in names)]
    return min(fits, key=lambda c: c.N * c.H)


def _with_grad(values):
    return [v.requires_grad_() if v is not None and v.is_floating_point() else v for v in values]


@pytest.mark.parametrize("save", [0, 1, 2])
@pytest.mark.parametrize("case", SHORT[::3] + SPECIAL[:3], ids=str)
def test_opcheck_forward(case: Case, save: int) -> None:
    opcheck(lstm.lstm_forward, (*_with_grad(make(case, F64)), case.reverse, save))


@pytest.mark.parametrize("save", [1, 2])
@pytest.mark.parametrize("case", SHORT[1::5], ids=str)
def test_opcheck_backward(case: Case, save: int) -> None:
    inputs = _with_grad(make(case, F64))
    with torch.no_grad():
        h, c, gates, _, _ = lstm.lstm_forward(*inputs, case.reverse, save)
    grads = _with_grad(make_grads(case, F64))
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")  # compiled: through lstm_forward, above
    opcheck(lstm.lstm_backward, (*grads, *inputs, case.reverse, save, h, c, gates), test_utils=utils)


def test_opcheck_sum_by_id() -> None:
    opcheck(lstm.sum_by_id, (torch.randn(9, 4, requires_grad=True), torch.randint(5, (9,)), 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("save", [0, 1, 2])
def test_weight_gradients_by_the_rule_of_accuracy(backend: str, save: int, dtype: torch.dtype) -> None:
    """float64 is the judge itself here; its derivatives are checked numerically below."""
    with fastlstm.backend(backend):
        for case in SHORT if backend == "cpu" else SHORT[::3]:
            inputs = make(case, dtype, canary=True)
            inputs = inputs._replace(
                **{n: v.requires_grad_() for n, v in inputs._asdict().items() if n in accuracy.LEAVES and v is not None}
            )
            h, c, gates, h_n, c_n = lstm.lstm_forward(*inputs, case.reverse, save)
            grads = make_grads(case, dtype)
            if save == 0:  # c is not there to take a gradient: compare with save=1
                torch.autograd.backward([h, h_n, c_n], [grads.dh, grads.dh_n, grads.dc_n])
                again = [None if v is None else v.detach().requires_grad_(v.requires_grad) for v in inputs]
                h, _, _, h_n, c_n = lstm.lstm_forward(*again, case.reverse, 1)
                torch.autograd.backward([h, h_n, c_n], [grads.dh, grads.dh_n, grads.dc_n])
                for v, w in zip(inputs, again, strict=True):
                    assert v is None or not v.requires_grad or torch.equal(v.grad, w.grad)
                continue
            torch.autograd.backward([h, c, h_n, c_n], list(grads))
            results = {"h": h, "c": c, "h_n": h_n, "c_n": c_n}
            results |= {f"d{n}": getattr(inputs, n).grad for n in accuracy.LEAVES if getattr(inputs, n) is not None}
            accuracy.check_all(results, case, dtype, what=f"{backend} save={save}")
            assert gates.requires_grad is False


@pytest.mark.parametrize("save", [0, 1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case",
    [_case(), _case("reverse", "projection"), _case("packed", "reverse", "reset", "projection", "ids"),
     _case("packed"), _case("packed", "reverse", "reset")],
    ids=str,
)  # fmt: skip
def test_both_derivatives(backend: str, case: Case, save: int) -> None:
    """gradcheck and gradgradcheck with respect to every floating argument at once."""
    inputs = make(case, F64)
    places = [k for k, v in enumerate(inputs) if v is not None and v.is_floating_point()]

    def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args = list(inputs)
        for k, v in zip(places, values, strict=True):
            args[k] = v
        h, c, _, h_n, c_n = lstm.lstm_forward(*args, case.reverse, save)
        return (h, h_n, c_n, c) if save else (h, h_n, c_n)

    values = [inputs[k].clone().requires_grad_() for k in places]
    with fastlstm.backend(backend):
        assert torch.autograd.gradcheck(call, values, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, values, fast_mode=True)


ROOT = Path(__file__).parents[2]
_DOUBLE_BACKWARD = """
import sys, torch, fastlstm
if sys.argv[1] == "hostsim":
    import tests.hostsim.backend
def second_gradients(backend, dtype):
    torch.manual_seed(0)
    lstm = fastlstm.LSTM(3, 8, dtype=torch.float64).to(dtype)
    x = torch.randn(3, 2, 3, dtype=torch.float64).to(dtype).requires_grad_()
    with fastlstm.backend(backend):
        out, (h, c) = lstm(x)
        assert fastlstm.last_plan().startswith(backend)
        first = torch.autograd.grad(out.sin().sum() + c.sum(), [x, *lstm.parameters()], create_graph=True)
        sum(g.square().sum() for g in first).backward()
    return [x.grad, *(p.grad for p in lstm.parameters())]
try:
    grads = second_gradients(sys.argv[1], torch.float32)
except fastlstm.BackendError as error:
    sys.exit(f"cannot run: {error}")
for a, b in zip(grads, second_gradients("reference", torch.float64)):
    torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "hostsim"])
def test_second_derivatives_through_backends_without_float64(backend: str) -> None:
    """In a process of its own: Triton's interpreter has to be asked for before it is imported."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _DOUBLE_BACKWARD, backend],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stderr.startswith("cannot run"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


def test_third_derivative() -> None:
    case = _case()
    inputs = make(case, F64)

    def call(x: torch.Tensor) -> torch.Tensor:
        return lstm.lstm_forward(x, *inputs[1:], False, 1)[0].square().sum()

    x = inputs.x[:2]
    expected = torch.func.jacrev(torch.func.jacrev(lambda v: grad(lambda y: _reference_loss(y, inputs))(v).sum()))(x)
    assert torch.allclose(torch.func.jacrev(torch.func.jacrev(lambda v: grad(call)(v).sum()))(x), expected)


def _reference_loss(x: torch.Tensor, inputs) -> torch.Tensor:
    from fastlstm.ops import reference

    return reference.forward(x, *inputs[1:], False, 1)[0].square().sum()


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_vmap_over_inputs_and_over_weights(case: Case) -> None:
    """K calls at once equal K calls, whatever is mapped; so do their gradients."""
    K = 3
    many = [make(case, F64, seed) for seed in range(K)]

    def loss(args: dict) -> torch.Tensor:
        call = many[0]._asdict() | args
        h, c, _, h_n, c_n = lstm.lstm_forward(*call.values(), case.reverse, 1)
        return h.square().sum() + c.sin().sum() + h_n.cos().sum() + c_n.square().sum()

    for names in (("x", "h0", "c0"), ("h0",), ("w_hh",), ("x", "bias", "w_x")):
        present = [n for n in names if getattr(many[0], n) is not None]
        stacked = {n: torch.stack([getattr(m, n) for m in many]) for n in present}
        if not stacked or case.N == 0:
            continue
        calls = [{n: getattr(m, n) for n in present} for m in many]
        torch.testing.assert_close(vmap(loss)(stacked), torch.stack([loss(args) for args in calls]))
        grads, expected = vmap(grad(loss))(stacked), [grad(loss)(args) for args in calls]
        for n in present:
            torch.testing.assert_close(grads[n], torch.stack([of_call[n] for of_call in expected]))


def test_vmap_in_another_dimension_and_of_ids() -> None:
    case = next(c for c in SHORT if c.ids and not c.packed and c.N)
    many = [make(case, F64, seed) for seed in range(3)]
    base = many[0]._asdict()

    def call(ids: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
        return lstm.lstm_forward(*(base | {"ids": ids, "h0": h0}).values(), case.reverse, 0)[0]

    ids, h0 = torch.stack([m.ids for m in many], 1), torch.stack([m.h0 for m in many], 2)
    h = vmap(call, in_dims=(1, 2), out_dims=1)(ids, h0)
    torch.testing.assert_close(h, torch.stack([call(m.ids, m.h0) for m in many], 1))


def test_per_sample_gradients() -> None:
    case = next(c for c in SHORT if not (c.packed or c.ids or c.reset) and c.B > 3 and c.H < 20)
    inputs = make(case, F64)

    def loss(w_hh: torch.Tensor, w_x: torch.Tensor, x: torch.Tensor, h0: torch.Tensor, c0: torch.Tensor):
        args = inputs._replace(x=x[:, None], w_x=w_x, w_hh=w_hh, h0=h0[None], c0=c0[None])
        return lstm.lstm_forward(*args, case.reverse, 1)[0].square().sum()

    per_sample = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, None, 1, 0, 0))
    grads = per_sample(inputs.w_hh, inputs.w_x, inputs.x, inputs.h0, inputs.c0)
    w_hh, w_x = inputs.w_hh.clone().requires_grad_(), inputs.w_x.clone().requires_grad_()
    lstm.lstm_forward(*inputs._replace(w_hh=w_hh, w_x=w_x), case.reverse, 1)[0].square().sum().backward()
    torch.testing.assert_close(grads[0].sum(0), w_hh.grad)
    torch.testing.assert_close(grads[1].sum(0), w_x.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast_does_not_reach_into_a_backend(dtype: torch.dtype) -> None:
    """Inside the op nothing changes type: the bits are those of the same call without autocast."""
    case = _case("reverse", "projection")
    inputs, grads = make(case, dtype), make_grads(case, dtype)
    plain = lstm.lstm_forward(*inputs, case.reverse, 2)
    plain_back = lstm.lstm_backward(*grads, *inputs, case.reverse, 2, *plain[:3])
    for other in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=other):
            cast = lstm.lstm_forward(*inputs, case.reverse, 2)
            cast_back = lstm.lstm_backward(*grads, *inputs, case.reverse, 2, *plain[:3])
        for a, b in zip((*plain, *plain_back), (*cast, *cast_back), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_sum_by_id_is_the_sum_and_repeats_its_bits() -> None:
    rows, ids = torch.randn(3000, 24), torch.randint(17, (3000,))
    sums = lstm.sum_by_id(rows, ids, 18)
    exact = torch.zeros(18, 24, dtype=F64).index_add_(0, ids, rows.double())
    torch.testing.assert_close(sums.double(), exact, rtol=1e-5, atol=1e-4)
    assert all(torch.equal(sums, lstm.sum_by_id(rows, ids, 18)) for _ in range(5))
    assert torch.equal(sums[17], torch.zeros(24))
    with pytest.raises(IndexError, match="ids hold 17, expected 0 to 16"):
        lstm.sum_by_id(rows, ids.clamp(max=16).index_fill(0, torch.tensor([5]), 17), 17)


def test_float32_cell_state_for_half_types() -> None:
    case = _case()
    for dtype in (torch.bfloat16, torch.float16):
        assert lstm.lstm_forward(*make(case, dtype), False, 1)[1].dtype == cell_type(dtype) == torch.float32
