"""The definition against nn.LSTM on each sequence alone, and its backward against autograd, all in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastlstm
from fastlstm import backends
from fastlstm.ops import reference
from fastlstm.ops.arguments import SAVE_CELLS, OpInputs, Saved
from fastlstm.ops.recompute import before_projection, recompute_gates
from fastlstm.testing import accuracy
from fastlstm.testing.cases import FULL, SHORT, Case, Inputs, make, make_grads

F64 = torch.float64


def _alone(case: Case, inputs: Inputs, b: int) -> tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequence b through nn.LSTM alone, cut at its resets: its rows, h of each, last h and c."""
    sizes = case.batch_sizes if case.packed else torch.full((case.T,), case.B)
    first = (sizes.cumsum(0) - sizes).tolist()
    rows = [first[t] + b for t in range(case.T) if sizes[t] > b]
    rows = rows[::-1] if case.reverse else rows
    width = inputs.w_hh.shape[0]
    lstm = torch.nn.LSTM(width, case.H, bias=False, proj_size=case.P if case.projection else 0, dtype=F64)
    state = {"weight_ih_l0": torch.eye(width, dtype=F64), "weight_hh_l0": inputs.w_hh, "weight_hr_l0": inputs.w_hr}
    lstm.load_state_dict({k: v for k, v in state.items() if v is not None})
    x_gates = reference.input_gates(inputs.x, inputs.ids, inputs.w_x, inputs.bias)[rows]
    flags = inputs.reset.flatten()[rows].tolist() if case.reset else [False] * len(rows)
    state, outs, at = (inputs.h0[b : b + 1], inputs.c0[b : b + 1]), [], 0
    cuts = [k for k, flag in enumerate(flags) if flag and k] + [len(rows)]
    for cut in cuts:
        if flags[at]:
            state = (torch.zeros_like(state[0]), torch.zeros_like(state[1]))
        out, state = lstm(x_gates[at:cut], state)
        outs.append(out)
        at = cut
    return rows, torch.cat(outs), state[0], state[1]


@pytest.mark.parametrize("case", FULL[:: len(FULL) // 97], ids=str)
def test_forward_is_nn_lstm_on_each_sequence_alone(case: Case) -> None:
    inputs = make(case, F64, canary=True)
    h, _, _, h_n, c_n = reference.forward(*inputs, case.reverse, 0)
    for b in range(0, case.B if case.T else 0, max(1, case.B // 5)):
        rows, out, last_h, last_c = _alone(case, inputs, b)
        torch.testing.assert_close(h.reshape(case.N, case.P)[rows], out)
        torch.testing.assert_close(h_n[b : b + 1], last_h)
        torch.testing.assert_close(c_n[b : b + 1], last_c)


@pytest.mark.parametrize("case", FULL[1 :: len(FULL) // 130], ids=str)
@pytest.mark.parametrize("save", [1, 2])
def test_backward_is_the_gradient(case: Case, save: int) -> None:
    ref = accuracy.expected(case, F64)
    inputs, grads = make(case, F64, canary=True), make_grads(case, F64)
    h, c, gates, _, _ = reference.forward(*inputs, case.reverse, save)
    d_gates, dh_proj, dh0, dc0 = reference.backward(*grads, *inputs, case.reverse, save, h, c, gates)
    torch.testing.assert_close(dh0, ref["dh0"])
    torch.testing.assert_close(dc0, ref["dc0"])
    if not case.ids:
        flat = d_gates.reshape(case.N, 4 * case.H)
        torch.testing.assert_close(flat.t() @ inputs.x.reshape(case.N, case.I), ref["dw_x"])
        torch.testing.assert_close((d_gates @ inputs.w_x).reshape_as(inputs.x), ref["dx"])
    else:
        table = torch.zeros_like(inputs.w_x).index_add_(0, inputs.ids.flatten(), d_gates.reshape(case.N, 4 * case.H))
        torch.testing.assert_close(table, ref["dw_x"])
    if case.projection:
        _, _, _, o = gates.reshape(case.N, 4, case.H).unbind(1) if save == 1 else (None,) * 4
        if save == 1:
            y = o * c.reshape(case.N, case.H).tanh()
            torch.testing.assert_close(dh_proj.reshape(case.N, case.P).t() @ y, ref["dw_hr"])


def test_absent_gradients_are_zero() -> None:
    case = next(c for c in SHORT if c.packed and c.reverse and c.initial)
    inputs, grads = make(case, F64), make_grads(case, F64)
    outs = reference.forward(*inputs, case.reverse, 1)[:3]
    for absent in range(4):
        some = [None if k == absent else g for k, g in enumerate(grads)]
        zero = [torch.zeros_like(g) if k == absent else g for k, g in enumerate(grads)]
        for a, b in zip(
            reference.backward(*some, *inputs, case.reverse, 1, *outs),
            reference.backward(*zero, *inputs, case.reverse, 1, *outs),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_every_type_by_the_rule_of_accuracy(case: Case, dtype: torch.dtype) -> None:
    for save in (1, 2):
        accuracy.check_backend(backends.load("reference"), case, dtype, save=save)


@pytest.mark.parametrize("save", [0, 1, 2])
def test_save_says_which_states_and_gates_are_kept(save: int) -> None:
    case = SHORT[0]
    _, c, gates, _, _ = reference.forward(*make(case, F64), False, save)
    assert c.shape == ((0,) if save == 0 else (case.T, case.B, case.H))
    assert gates.shape == ((case.T, case.B, 4 * case.H) if save == 1 else (0,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loop_yardstick_is_no_looser_than_nn_lstm(dtype: torch.dtype) -> None:
    """Where nn.LSTM can do the case, the loop that stands in for it has about its error."""
    for case in (c for c in SHORT if not (c.reset or c.projection) and c.T and c.B):
        ref, lstm, loop = (
            accuracy.expected(case, dtype),
            accuracy.baseline(case, dtype, cells=False),
            accuracy.baseline(case, dtype),
        )
        for name in ("h", "h_n", "c_n"):
            floor = torch.finfo(dtype).eps
            assert accuracy.error(loop[name], ref[name]) <= 2.5 * max(accuracy.error(lstm[name], ref[name]), floor), (
                case,
                name,
            )


class _Written(TorchDispatchMode):
    """Counts the numbers that operations return, those of backward too."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.numbers += sum(v.numel() for v in tree_leaves(out) if isinstance(v, torch.Tensor))
        return out


def _written(work: Callable[[], object]) -> int:
    with _Written() as written:
        work()
    return written.numbers


def _twice_differentiated(case: Case) -> None:
    inputs, grads = make(case, F64), make_grads(case, F64)
    leaves = [v.requires_grad_() for v in (inputs.x, inputs.w_hh, grads.dh)]
    with fastlstm.backend("reference"):
        h = torch.ops.fastlstm.lstm_forward(*inputs, case.reverse, 1)[0]
        first = torch.autograd.grad(h, leaves[:2], grads.dh, create_graph=True)
    torch.autograd.grad([g.square().sum() for g in first], leaves)


@pytest.mark.parametrize(
    "work",
    [
        lambda case: accuracy.expected.__wrapped__(case, torch.float32),
        lambda case: accuracy.baseline.__wrapped__(case, torch.float32),
        _twice_differentiated,
    ],
    ids=["definition", "torch's operations", "second derivatives"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_take_work_that_grows_as_the_steps(work: Callable[[Case], object], packed: bool) -> None:
    """And not as their square: a slice of all rows for each step has a gradient of all rows for each step."""
    few, many = (Case("long", T, 2, 3, 4, 4, lengths=(T, T // 2) if packed else ()) for T in (128, 256))
    assert _written(lambda: work(many)) < 2.1 * _written(lambda: work(few))


def test_the_rule_of_accuracy_can_fail() -> None:
    ref = torch.ones(10, dtype=F64)
    accuracy.check("equal", ref.float(), ref, ref.float())
    with pytest.raises(accuracy.WrongResultError, match="relative error"):
        accuracy.check("off", ref.float() + 1e-5, ref, ref.float())
    with pytest.raises(accuracy.WrongResultError, match="relative error"):
        accuracy.check("nan", ref.float() * float("nan"), ref, ref.float())
    with pytest.raises(accuracy.WrongResultError, match="shape"):
        accuracy.check("shape", ref.float()[:3], ref, ref.float())


@pytest.mark.parametrize("bad", [-1, -5, 5, 9])
def test_an_id_outside_its_table_is_nan_wherever_it_is_read(bad: int) -> None:
    """On a GPU no one looks at ids before the kernels; the row of another symbol would be silently wrong."""
    case = Case("ids", T=3, B=2, I=0, H=3, P=2, V=5, ids=True, projection=True)
    inputs = make(case, F64)
    inputs = inputs._replace(ids=inputs.ids.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(bad)))
    h, c, gates, *_ = reference.forward(*inputs, False, 1)
    assert h[:, 1].isfinite().all()
    assert h[0].isfinite().all()
    assert h[1:, 0].isnan().all()
    again = recompute_gates(OpInputs(*inputs, False, SAVE_CELLS), h)
    assert torch.equal(again[1:, 0].isnan(), torch.ones(2, 12, dtype=torch.bool))
    assert again[:, 1].isfinite().all()
    y = before_projection(OpInputs(*inputs, False, SAVE_CELLS), Saved(h, c, gates)).view(3, 2, 3)
    assert y[1:, 0].isnan().all()
    assert y[:, 1].isfinite().all()
    d_gates = reference.backward(*make_grads(case, F64), *inputs, False, 1, h, c, gates)[0]
    assert d_gates[1, 0].isnan().all()  # so the gradient of the table tells too
