"""Sequences of many rows: several chunks, in which every thread has rows and sums of its own, or shares them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm.backends import native
from tests import isas

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
T, B, I, H = MANY_ROWS = 45, 26, 7, 19  # 1170 rows: five chunks for each of two threads
VARIANTS = {
    "dense": {},
    "no bias": {"bias": False},
    "both directions": {"bidirectional": True, "num_layers": 2},
    "projection": {"proj_size": 5},
    "projection over two panels": {"proj_size": 40},
    "wide projection, both directions": {"proj_size": 17, "bidirectional": True},
}


def _module(variant: str, ids: int | None, dtype: torch.dtype, I: int, H: int) -> torch.nn.Module:
    torch.manual_seed(11)
    if ids is not None:
        return fastlstm.TokenLSTM(ids, None, H, dtype=dtype, **VARIANTS[variant])
    return fastlstm.LSTM(I, H, dtype=dtype, **VARIANTS[variant])


def _results(
    backend: str,
    variant: str,
    ids: int | None,
    ragged: bool,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int] = MANY_ROWS,
) -> dict[str, torch.Tensor]:
    """Output, final states and all gradients, in float64."""
    T, B, I, H = sizes
    module = _module(variant, ids, torch.float32, I, H).to(dtype)
    torch.manual_seed(12)
    x = torch.randn(T, B, I).to(dtype).requires_grad_() if ids is None else torch.randint(ids, (T, B))
    lengths = torch.linspace(T, min(3, T - 1), B).long() if ragged else torch.full((B,), T)
    lengths[-1] = 1 if ragged else T
    inputs = pack_padded_sequence(x, lengths) if ragged else x
    lstm = getattr(module, "lstm", module)
    n, P = lstm.num_layers * (2 if lstm.bidirectional else 1), lstm.proj_size or H
    hx = tuple(torch.randn(n, B, size).to(dtype).requires_grad_() for size in (P, H))
    with fastlstm.backend(backend):
        out, (h_n, c_n) = module(inputs, hx)
    data = out.data if isinstance(out, PackedSequence) else out
    loss = (data * torch.randn(data.shape).to(dtype)).sum() + (h_n * 2 + c_n[..., :1]).sum()
    leaves = {**({"x": x} if ids is None else {}), "h0": hx[0], "c0": hx[1], **dict(module.named_parameters())}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    results = {"out": data, "h_n": h_n, "c_n": c_n, **dict(zip(leaves, grads, strict=True))}
    return {name: v.detach().double() for name, v in results.items()}


@pytest.fixture(params=isas.FLOAT)
def isa(request: pytest.FixtureRequest):
    with isas.use(request.param):
        yield


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize(  # a table as large as the text is shared, a small one is not
    ("variant", "ids"),
    [
        (variant, ids)
        for variant in VARIANTS
        for ids in (None, 9, 700)
        if "two panels" not in variant and (ids is None or "projection" not in variant)
    ],
)
def test_results_and_gradients_by_the_rule_of_accuracy(
    variant: str, ids: int | None, ragged: bool, isa: None, threads: None
) -> None:
    _check(variant, ids, ragged, MANY_ROWS)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("variant", ["dense", "projection over two panels"])
@pytest.mark.parametrize(
    "sizes", [(3, 13, 33, 65), (3, 50, 3, 65), (2, 97, 35, 97)], ids=lambda v: "-".join(map(str, v))
)
def test_several_tiles_of_rows_and_panels(
    sizes: tuple[int, int, int, int], variant: str, ragged: bool, isa: None, threads: None
) -> None:
    """More rows than a tile takes (48), an odd number of panels (of 32 columns at most), and edges of both."""
    _check(variant, None, ragged, sizes)


def _check(variant: str, ids: int | None, ragged: bool, sizes: tuple[int, int, int, int]) -> None:
    truth = _results("reference", variant, ids, ragged, torch.float64, sizes)
    baseline = _results("reference", variant, ids, ragged, torch.float32, sizes)
    actual = _results("cpu", variant, ids, ragged, torch.float32, sizes)
    for name, true in truth.items():
        allowed = max(2 * (baseline[name] - true).norm(), 4 * torch.finfo(torch.float32).eps * true.norm())
        assert (actual[name] - true).norm() <= allowed, name


@pytest.mark.parametrize("ids", [None, 9])
def test_a_second_call_gives_the_same_bits(ids: int | None, threads: None) -> None:
    first, second = (_results("cpu", "dense", ids, True, torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("frozen", ["weight_hr_l0", "weight_hh_l0"])
def test_a_frozen_weight_changes_no_other_gradient(frozen: str, threads: None) -> None:
    lstm, x = fastlstm.LSTM(I, H, proj_size=17), torch.randn(T, B, I)
    grads = []
    for _ in range(2):
        lstm.zero_grad()
        with fastlstm.backend("cpu"):
            lstm(x)[0].square().sum().backward()
        grads.append({name: p.grad for name, p in lstm.named_parameters()})
        lstm.get_parameter(frozen).requires_grad_(False)
    assert grads[1].pop(frozen) is None
    assert all(torch.equal(grad, grads[0][name]) for name, grad in grads[1].items())


@pytest.mark.parametrize("width", [1, 5, 1030])
def test_wide_layers_by_the_rule_of_accuracy(width: int, isa: None, threads: None) -> None:
    """Many columns of gates, one or many of x, rows in the order of ragged sequences."""

    def results(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        torch.manual_seed(13)
        lstm, x = fastlstm.LSTM(width, 257), torch.randn(9, 11, width)
        lstm, x = lstm.to(dtype), x.to(dtype).requires_grad_()
        with fastlstm.backend(backend):
            out = lstm(pack_padded_sequence(x, torch.linspace(9, 2, 11).long()))[0].data
        out.square().sum().backward()
        return [v.detach().double() for v in (out, x.grad, *(p.grad for p in lstm.parameters()))]

    truth, baseline = (results("reference", dtype) for dtype in (torch.float64, torch.float32))
    for actual, true, rounded in zip(results("cpu", torch.float32), truth, baseline, strict=True):
        allowed = max(2 * (rounded - true).norm(), 4 * torch.finfo(torch.float32).eps * true.norm())
        assert (actual - true).norm() <= allowed


def test_gradients_with_resets_are_the_references(threads: None) -> None:
    """All sequences start anew at two steps."""
    lstm, x, reset = fastlstm.LSTM(I, H), torch.randn(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    reset[17], reset[30] = True, True
    with fastlstm.backend("cpu"):
        lstm(x, reset=reset)[0].square().sum().backward()
    grads = [p.grad.clone() for p in lstm.parameters()]
    lstm.zero_grad()
    with fastlstm.backend("reference"):
        lstm(x, reset=reset)[0].square().sum().backward()
    for grad, parameter in zip(grads, lstm.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-4)
