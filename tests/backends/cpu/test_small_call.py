"""Few-row calls in one native call: right where it applies, not taken where it does not, and nothing remembered."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm import dispatch
from fastlstm.backends import native
from fastlstm.backends.cpu import small_call
from fastlstm.testing import accuracy

_SMALL_CALL = small_call.prepared(fastlstm.LSTM, dispatch.requested_name, dispatch.last_call)
pytestmark = [
    pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable())),
    pytest.mark.skipif(_SMALL_CALL is None, reason="this torch has no DLPack exchange API"),
]


def _short() -> bool:
    return fastlstm.last_plan() == small_call.PLAN


def _pair(*args: object, **kwargs: object) -> tuple[nn.LSTM, fastlstm.LSTM]:
    torch_lstm = nn.LSTM(*args, **kwargs)
    return torch_lstm, fastlstm.LSTM.from_torch(torch_lstm)


def _same(actual: tuple, expected: tuple) -> None:
    for a, b in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
        assert [k for n, k in zip(a.shape, a.stride(), strict=True) if n > 1] == [
            k for n, k in zip(b.shape, b.stride(), strict=True) if n > 1
        ]
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
def test_results_are_nn_lstms(layout: str, bias: bool, with_state: bool) -> None:
    for (I, H, L), (T, B) in itertools.product(
        [(1, 1, 1), (3, 7, 3), (65, 129, 2), (128, 16, 1)], [(1, 1), (4, 1), (1, 4), (2, 2), (1, 3)]
    ):
        if layout == "unbatched" and B > 1:
            continue
        torch_lstm, lstm = _pair(I, H, L, bias=bias, batch_first=layout == "batch first")
        x = torch.randn({"time first": (T, B, I), "batch first": (B, T, I), "unbatched": (T, I)}[layout])
        shape = (L, H) if layout == "unbatched" else (L, B, H)
        hx = (torch.randn(shape), torch.randn(shape)) if with_state else None
        with torch.no_grad():
            actual = lstm(x, hx)
            assert _short() == (layout != "batch first" or 1 in (T, B)), (T, B)
            _same(actual, torch_lstm(x, hx))


def test_results_by_the_rule_of_accuracy() -> None:
    for H in (8, 128, 513):
        torch_lstm, lstm = _pair(H, H, 2)
        x, hx = torch.randn(2, 2, H), (torch.randn(2, 2, H), torch.randn(2, 2, H))
        with torch.no_grad():
            actual, baseline = lstm(x, hx), torch_lstm(x, hx)
            assert _short()
            exact = torch_lstm.double()(x.double(), tuple(v.double() for v in hx))
        for y, reference, torch_y in zip(
            (actual[0], *actual[1]), (exact[0], *exact[1]), (baseline[0], *baseline[1]), strict=True
        ):
            bound = max(2 * accuracy.error(torch_y, reference), 4 * torch.finfo(torch.float32).eps)
            assert accuracy.error(y, reference) <= bound


def test_more_rows_go_the_general_way() -> None:
    lstm = fastlstm.LSTM(3, 5)
    with torch.no_grad():
        for shape, short in (
            ((5, 1, 3), False),
            ((1, 3), True),
            ((1, 5, 3), False),
            ((3, 2, 3), False),
            ((4, 3), True),
        ):
            lstm(torch.randn(shape))
            assert _short() == short


def _changes() -> dict[str, Callable[[fastlstm.LSTM], object]]:
    def twice(lstm: fastlstm.LSTM) -> None:
        lstm.weight_hh_l0.data.mul_(2)

    def through_numpy(lstm: fastlstm.LSTM) -> None:
        lstm.weight_ih_l0.detach().numpy()[:] *= 3

    def new_data(lstm: fastlstm.LSTM) -> None:
        lstm.weight_ih_l0.data = torch.randn(20, 3)

    def transposed_data(lstm: fastlstm.LSTM) -> None:
        lstm.weight_ih_l0.data = torch.randn(3, 20).t()

    def new_parameter(lstm: fastlstm.LSTM) -> None:
        lstm.bias_hh_l0 = nn.Parameter(torch.randn(20))

    def negated(lstm: fastlstm.LSTM) -> None:
        lstm.weight_hh_l0 = nn.Parameter(torch._neg_view(torch.randn(20, 5)))

    def plain_tensor(lstm: fastlstm.LSTM) -> None:
        weight = lstm.weight_hh_l0.detach() * 2
        del lstm.weight_hh_l0
        lstm.weight_hh_l0 = weight

    def loaded(lstm: fastlstm.LSTM) -> None:
        lstm.load_state_dict(nn.LSTM(3, 5).state_dict())

    return {
        f.__name__: f
        for f in (twice, through_numpy, new_data, transposed_data, new_parameter, negated, plain_tensor, loaded)
    }


@pytest.mark.parametrize("change", _changes().values(), ids=_changes())
def test_changed_weights_show_at_once(change: Callable) -> None:
    lstm, x, hx = fastlstm.LSTM(3, 5), torch.randn(1, 1, 3), (torch.randn(1, 1, 5), torch.randn(1, 1, 5))
    with torch.no_grad():
        before = lstm(x, hx)[0]
        assert _short()
        change(lstm)
        after = lstm(x, hx)
        _same(after, nn.LSTM.forward(lstm, x, hx))
    assert not torch.allclose(before, after[0])


def test_inputs_of_any_strides_and_lazy_negations_are_right() -> None:
    """Strides, numbers that are still to be negated, and memory of another tensor."""
    torch_lstm, lstm = _pair(3, 5, 2)
    state = torch.randn(2, 1, 10)
    for x in (
        torch.randn(1, 1, 6)[..., ::2], torch.randn(3, 1, 2).transpose(0, 2), torch.randn(1, 2, 1, 3)[:, 1],
        torch.randn(1, 1, 3, dtype=torch.complex64).conj().imag, torch._neg_view(torch.randn(1, 1, 3)),
        torch.randn(3).expand(2, 2, 3),
    ):  # fmt: skip
        B = x.shape[1]
        for hx in (
            None,
            (state[:, :, :5].expand(2, B, 5), state[:, :, 5:].expand(2, B, 5)),
            (torch._neg_view(torch.randn(2, B, 5)), torch.randn(2, B, 5)),
            (torch.randn(2, B, 5), torch.randn(2, B, 5, dtype=torch.complex64).conj().imag),
            [torch.randn(2, B, 5), torch.randn(2, B, 5)],
        ):
            with torch.no_grad():
                _same(lstm(x, hx), torch_lstm(x, hx))


def test_outputs_have_memory_of_their_own_whatever_the_default_type() -> None:
    lstm, x, hx = fastlstm.LSTM(3, 5), torch.randn(1, 1, 3), (torch.randn(1, 1, 5), torch.randn(1, 1, 5))
    with torch.no_grad():
        expected = lstm(x, hx)
        torch.set_default_dtype(torch.float64)
        try:
            actual = lstm(x, hx)
        finally:
            torch.set_default_dtype(torch.float32)
        assert _short()
    _same(actual, expected)
    assert not any(v.requires_grad for v in (actual[0], *actual[1]))
    places = {v.untyped_storage().data_ptr() for v in (x, *hx, actual[0], *actual[1])}
    assert len(places) == 6
    assert actual[0].resize_(3, 7).shape == (3, 7)
    with torch.inference_mode():
        assert lstm(x, hx)[0].is_inference()
        assert _short()


def test_not_taken_under_modes_autocast_transforms_or_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    lstm, x = fastlstm.LSTM(3, 5), torch.randn(1, 1, 3)

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    def plan(call: Callable = lambda: lstm(x)) -> str:
        fastlstm.dispatch.record_plan("")
        call()
        return fastlstm.last_plan()

    assert plan() != small_call.PLAN  # gradients are on
    with torch.no_grad():
        assert plan() == small_call.PLAN
        with Look():
            assert plan() != small_call.PLAN
        with torch.device("cpu"):
            assert plan() != small_call.PLAN
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert plan() != small_call.PLAN
            assert lstm(x)[0].dtype == torch.bfloat16
        with fastlstm.backend("reference"):
            assert plan().startswith("reference")
        with fastlstm.backend("cpu"):
            assert plan() == small_call.PLAN
        monkeypatch.setenv("FASTLSTM_BACKEND", "torch")
        assert plan().startswith("torch")
        with fastlstm.backend(None):
            assert plan() == small_call.PLAN
        monkeypatch.setenv("FASTLSTM_BACKEND", "cpu")
        assert plan() == small_call.PLAN
        monkeypatch.delenv("FASTLSTM_BACKEND")
        assert plan(lambda: torch.vmap(lstm)(x[None])) != small_call.PLAN
        with torch.autograd.forward_ad.dual_level():
            assert plan() != small_call.PLAN
        assert plan(lambda: torch.jit.trace(lstm, x, check_trace=False)) != small_call.PLAN
        lstm.weight_drop = 0.5
        assert plan() != small_call.PLAN
        lstm.eval()
        assert plan() == small_call.PLAN
        lstm.return_cell_states = True
        assert len(lstm(x)) == 3


def test_a_subclass_keeps_its_own_checks() -> None:
    class Strict(fastlstm.LSTM):
        def check_forward_args(self, *args: object) -> None:
            raise RuntimeError("of the subclass")

    with torch.no_grad(), pytest.raises(RuntimeError, match="of the subclass"):
        Strict(3, 5)(torch.randn(1, 1, 3))


_ODD = {
    "deeper": lambda v: v[None], "flat": lambda v: v.flatten(), "long": lambda v: v.long(), "half": lambda v: v.half(),
    "double": lambda v: v.double(), "meta": lambda v: v.to("meta"), "sparse": lambda v: v.to_sparse(),
    "wider": lambda v: torch.cat([v, v], -1), "narrow": lambda v: v[..., :1], "none": lambda v: None,
    "empty": lambda v: v[:0], "more rows": lambda v: torch.cat([v, v], 1), "list": lambda v: v.tolist(),
}  # fmt: skip


@pytest.mark.parametrize("odd", _ODD)
@pytest.mark.parametrize("which", ["x", "h0", "c0"])
def test_no_bad_argument_reaches_the_kernel(which: str, odd: str) -> None:
    """Each is wrong: nothing is run, and the general way says why, as torch does."""
    torch_lstm, lstm = _pair(3, 5, 2)
    arguments = {"x": torch.randn(1, 2, 3), "h0": torch.randn(2, 2, 5), "c0": torch.randn(2, 2, 5)}
    odd = "flat" if (which, odd) == ("h0", "sparse") else odd  # that one nn.LSTM takes, see the next test
    arguments[which] = _ODD[odd](arguments[which])
    x, hx = arguments["x"], (arguments["h0"], arguments["c0"])
    with torch.no_grad():
        assert _SMALL_CALL(lstm, x, hx) is None
        raised = []
        for module in (torch_lstm, lstm):
            with pytest.raises(Exception) as caught:  # noqa: PT011
                module(x, hx)
            raised.append(caught.type)
    assert raised[0] is raised[1]


def test_a_sparse_state_is_left_to_torch() -> None:
    torch_lstm, lstm = _pair(3, 5, 2)
    x, h0, c0 = torch.randn(1, 2, 3), torch.randn(2, 2, 5).relu().to_sparse(), torch.randn(2, 2, 5)
    with torch.no_grad():
        _same(lstm(x, (h0, c0)), torch_lstm(x, (h0, c0)))


@pytest.mark.parametrize("odd", ["deeper", "flat", "wider", "narrow", "empty", "sparse", "half", "double", "meta"])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l0"])
def test_no_bad_weight_reaches_a_kernel(name: str, odd: str) -> None:
    """Sizes are checked for torch too, which reads memory that is not its own; other types and places are its affair."""
    if name == "bias_hh_l0" and odd in ("flat", "narrow", "sparse"):  # the same, and a sum that torch can do
        odd = "wider"
    lstm, packed = fastlstm.LSTM(3, 5, 2), nn.utils.rnn.pack_sequence([torch.randn(3, 3), torch.randn(1, 3)])
    setattr(lstm, name, nn.Parameter(_ODD[odd](getattr(lstm, name).detach()), requires_grad=False))
    with torch.no_grad():
        assert _SMALL_CALL(lstm, torch.randn(1, 2, 3), None) is None
    if odd in ("half", "double", "meta"):
        return
    message = "layout" if odd == "sparse" else f"{name} has shape .*, expected"
    for x in (torch.randn(1, 2, 3), torch.randn(9, 2, 3), packed):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match=message):
                lstm(x)


def test_reference_counts_do_not_grow() -> None:
    lstm, x, hx = fastlstm.LSTM(3, 5, 2), torch.randn(1, 1, 3), (torch.randn(2, 1, 5), torch.randn(2, 1, 5))
    held: list[object] = [x, *hx, hx, *lstm._parameters.values(), lstm._parameters, lstm.__dict__, small_call.PLAN]
    with torch.no_grad():
        lstm(x, hx)
        before = [sys.getrefcount(v) for v in held]
        for _ in range(50):
            lstm(x, hx)
            lstm(x, [*hx])
            lstm(x[..., ::1], None)
        after = [sys.getrefcount(v) for v in held]
    assert after == before
    with torch.no_grad():
        results = _SMALL_CALL(lstm, x, hx)
    assert sys.getrefcount(results) == 2
    assert [sys.getrefcount(v) for v in results] == [3, 3]  # the tuple, the name and the argument
    assert [sys.getrefcount(v) for v in results[1]] == [3, 3]


def test_tensors_without_memory_are_not_asked_for_it() -> None:
    """torch takes a millisecond to refuse, and with this variable it says so; torch.func and training ask nothing."""
    code = (
        "import torch, fastlstm\n"
        "lstm, x = fastlstm.LSTM(3, 5), torch.randn(4, 1, 3)\n"
        "lstm(x.requires_grad_()); fastlstm.LSTM(3, 5, device='meta')(torch.randn(1, 2, 3, device='meta'))\n"
        "with torch.no_grad():\n"
        "    torch.func.vmap(lambda row: lstm(row[None])[0])(x.detach())\n"
        "    torch.func.grad(lambda row: lstm(row[None])[0].sum())(x.detach()[0])\n"
    )
    environment = os.environ | {"TORCH_SHOW_CPP_STACKTRACES": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_memory_of_x_is_looked_up_after_code_that_may_change_it() -> None:
    class Probability(float):
        def __bool__(self) -> bool:
            x.data = torch.zeros_like(x)
            return False

    torch_lstm, lstm = _pair(3, 5)
    x = torch.randn(1, 2, 3)
    lstm.dropout = Probability(0.0)
    with torch.no_grad():
        actual = lstm(x)
        assert _short()
        _same(actual, torch_lstm(torch.zeros(1, 2, 3)))


class _Answers(torch.Tensor):
    """A class that answers a function of torch itself."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if cls.function in getattr(func, "__name__", ""):
            return cls.answer()
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", ["new_empty", "contiguous"])
@pytest.mark.parametrize("part", ["x", "hx"])
def test_a_class_with_functions_of_its_own_takes_the_way_of_any_call(name: str, part: str) -> None:
    class Own(_Answers):
        function = name

        @classmethod
        def answer(cls) -> torch.Tensor:
            return torch.empty(1)

    torch_lstm, lstm = _pair(3, 4000)
    x, hx = torch.randn(4, 1, 6)[..., ::2], (torch.randn(1, 1, 4000), torch.randn(1, 1, 4000))
    given = (x.as_subclass(Own), hx) if part == "x" else (x, tuple(v.as_subclass(Own) for v in hx))
    with torch.no_grad():
        actual = lstm(*given)
        assert not _short()
        assert type(actual[0]) is type(torch_lstm(*given)[0])
        _same([v.as_subclass(torch.Tensor) if isinstance(v, torch.Tensor) else v for v in actual], torch_lstm(x, hx))


@pytest.mark.parametrize("part", ["x", "hx", "weight"])
def test_a_class_that_refuses_an_lstm_is_asked(part: str) -> None:
    class Own(_Answers):
        function = "lstm"

        @classmethod
        def answer(cls) -> None:
            raise RuntimeError("no lstm for me")

    torch_lstm, lstm = _pair(3, 5)
    x, hx = torch.randn(2, 1, 3), (torch.randn(1, 1, 5), torch.randn(1, 1, 5))
    if part == "weight":
        for module in (torch_lstm, lstm):
            module._parameters["weight_hh_l0"] = module.weight_hh_l0.detach().as_subclass(Own)
            module._flat_weights[1] = module._parameters["weight_hh_l0"]
    given = (x.as_subclass(Own) if part == "x" else x, tuple(v.as_subclass(Own) for v in hx) if part == "hx" else hx)
    for module in (torch_lstm, lstm):
        with torch.no_grad(), pytest.raises(RuntimeError, match="no lstm for me"):
            module(*given)


@pytest.mark.parametrize("base", [fastlstm.LSTM, fastlstm.NNLSTM])
def test_the_checks_and_options_of_a_subclass_hold(base: type) -> None:
    class Own(base):
        def check_input(self, input, batch_sizes) -> None:
            raise ValueError("my own check")

    for T in (2, 9):
        with torch.no_grad(), pytest.raises(ValueError, match="my own check"):
            Own(3, 5)(torch.randn(T, 1, 3), (torch.randn(1, 1, 5), torch.randn(1, 1, 5)))


def test_an_nnlstm_takes_the_short_way_too() -> None:
    torch_lstm = nn.LSTM(3, 5)
    lstm = fastlstm.NNLSTM.from_torch(torch_lstm)
    x = torch.randn(2, 1, 3)
    with torch.no_grad():
        _same(lstm(x), torch_lstm(x))
    assert _short()
