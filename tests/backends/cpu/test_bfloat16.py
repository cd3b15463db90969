"""Products of bfloat16 on the instruction sets that have them: accuracy, chunks, float32 weights, NaN, and repeatability.

A machine without AVX512-BF16 and AMX skips all of it, naming what is not there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm import backends
from fastlstm.backends import native
from fastlstm.testing import accuracy, cases
from tests import isas

SETS = ("avx512_bf16", "amx")
B16 = torch.bfloat16


@pytest.fixture(params=SETS, autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in isas.ALL:
        pytest.skip(f"this machine has no {request.param}")
    with isas.use(request.param):
        yield request.param


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _gradients(
    lstm: torch.nn.Module, x: Tensor | PackedSequence, *leaves: Tensor, autocast: bool = False
) -> list[Tensor]:
    """Output, final states, then the gradients of `leaves` and of the parameters."""
    with torch.autocast("cpu", B16, enabled=autocast):
        out, states = lstm(x)
    data = out.data if isinstance(out, PackedSequence) else out
    weight = torch.linspace(-1, 1, data.numel(), dtype=torch.float64).reshape(data.shape).to(data.dtype)
    loss = (data * weight).sum() + sum(v.float().square().sum() for v in states)
    return [v.detach() for v in (data, *states, *torch.autograd.grad(loss, (*leaves, *lstm.parameters())))]


@pytest.mark.parametrize("case", cases.SHORT, ids=lambda case: case.id)
def test_short_table(case: cases.Case, threads: None) -> None:
    accuracy.check_backend(backends.load("cpu"), case, B16)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize(
    ("I", "H", "options"),
    [(33, 70, {}), (7, 129, {"proj_size": 40}), (16, 65, {"bidirectional": True, "bias": False})],
    ids=str,
)
def test_several_shared_chunks_by_the_rule_of_accuracy(
    I: int, H: int, options: dict, ragged: bool, threads: None
) -> None:
    """Few rows and many steps: threads share the rows, and meet between chunks of 1,024 rows."""
    _check_accuracy(I, H, options, 300, 9, ragged)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize(
    ("I", "H", "options"),
    [
        (7, 19, {}),
        (129, 33, {"bias": False}),
        (16, 64, {"num_layers": 2, "bidirectional": True}),
        (31, 70, {"proj_size": 17, "bidirectional": True}),
        (1, 1, {"num_layers": 2}),
        (5, 257, {"proj_size": 1}),
    ],
    ids=str,
)
def test_many_rows_by_the_rule_of_accuracy(I: int, H: int, options: dict, ragged: bool, threads: None) -> None:
    """Chunks of several steps, with sums of each thread."""
    _check_accuracy(I, H, options, 45, 27, ragged)


def _check_accuracy(I: int, H: int, options: dict, T: int, B: int, ragged: bool) -> None:
    """Output, states and all gradients beside nn.LSTM in bfloat16."""
    torch.manual_seed(5)
    ours = fastlstm.LSTM(I, H, dtype=B16, **options)
    x, lengths = torch.randn(T, B, I).to(B16), torch.linspace(T, 1, B).long()

    def results(kind: type, dtype: torch.dtype) -> list[Tensor]:
        lstm = kind(I, H, dtype=dtype, **options)
        lstm.load_state_dict(ours.state_dict())
        rows = x.to(dtype).requires_grad_()
        return [v.double() for v in _gradients(lstm, pack_padded_sequence(rows, lengths) if ragged else rows, rows)]

    with fastlstm.backend("reference"):
        truth = results(fastlstm.LSTM, torch.float64)
    baseline, actual = results(torch.nn.LSTM, B16), results(fastlstm.LSTM, B16)
    assert fastlstm.last_plan().startswith("cpu: fused")
    assert "bfloat16 products" in fastlstm.last_plan()
    for k, (value, true, rounded) in enumerate(zip(actual, truth, baseline, strict=True)):
        allowed = max(2 * (rounded - true).norm(), 4 * torch.finfo(B16).eps * true.norm())
        assert (value - true).norm() <= allowed, k


@pytest.mark.parametrize("embedding", [None, 5])
def test_token_ids_by_the_rule_of_accuracy(embedding: int | None, threads: None) -> None:
    torch.manual_seed(6)
    V, ids = 9, torch.randint(9, (40, 27))
    ours = fastlstm.TokenLSTM(V, embedding, 19).to(B16)

    def results(dtype: torch.dtype, backend: str | None) -> list[Tensor]:
        module = fastlstm.TokenLSTM(V, embedding, 19).to(dtype)
        module.load_state_dict(ours.state_dict())
        with fastlstm.backend(backend):
            return [v.double() for v in _gradients(module, ids)]

    truth, baseline, actual = results(torch.float64, "reference"), results(B16, "reference"), results(B16, None)
    for k, (value, true, rounded) in enumerate(zip(actual, truth, baseline, strict=True)):
        allowed = max(2 * (rounded - true).norm(), 4 * torch.finfo(B16).eps * true.norm())
        assert (value - true).norm() <= allowed, k


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 7}], ids=str)
def test_autocast_rounds_the_weights_inside_the_kernels(options: dict, threads: None) -> None:
    """The bits are those of rounded weights; gradients of float32 weights are the same sums, not rounded."""
    torch.manual_seed(7)
    x = torch.randn(33, 17, 13, requires_grad=True)
    lstm = fastlstm.LSTM(13, 37, bias=False, **options)
    rounded = fastlstm.LSTM(13, 37, bias=False, dtype=B16, **options)
    rounded.load_state_dict(lstm.state_dict())
    mixed, plain = _gradients(lstm, x, x, autocast=True), _gradients(rounded, x.to(B16), x)
    assert "bfloat16 products" in fastlstm.last_plan()
    assert [v.dtype for v in mixed[:3]] == [B16] * 3
    assert all(v.dtype == torch.float32 for v in mixed[3:])
    for a, b in zip(mixed, plain, strict=True):
        assert torch.equal(a.to(b.dtype), b)


@pytest.mark.parametrize("embedding", [None, 5])
def test_autocast_on_token_ids_rounds_the_recurrent_weights_inside_the_kernels(embedding: int | None) -> None:
    """The table of the first layer stays float32, so bits differ from those of a rounded module."""
    torch.manual_seed(11)
    ids, module = torch.randint(9, (12, 7)), fastlstm.TokenLSTM(9, embedding, 19)
    mixed, exact = _gradients(module, ids, autocast=True), _gradients(module, ids)
    assert mixed[0].dtype == B16
    for a, b in zip(mixed, exact, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05 * float(b.abs().max()))


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
def test_autocast_with_a_frozen_weight_changes_no_other_gradient(frozen: str) -> None:
    lstm, x, grads = fastlstm.LSTM(5, 19), torch.randn(12, 7, 5), []
    for _ in range(2):
        lstm.zero_grad()
        with torch.autocast("cpu", B16):
            lstm(x)[0].square().sum().backward()
        grads.append({name: p.grad for name, p in lstm.named_parameters()})
        lstm.get_parameter(frozen).requires_grad_(False)
    assert grads[1].pop(frozen) is None
    for name, grad in grads[1].items():  # other rows of the product may be summed in another order
        torch.testing.assert_close(grad, grads[0][name], rtol=1e-4, atol=1e-5 * float(grad.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64], ids=str)
def test_autocast_refuses_states_of_other_types_as_nn_lstm_does(dtype: torch.dtype) -> None:
    hx = tuple(torch.zeros(1, 2, 4, dtype=dtype) for _ in range(2))
    for lstm in (torch.nn.LSTM(3, 4), fastlstm.LSTM(3, 4)):
        with torch.autocast("cpu", B16), pytest.raises(RuntimeError):
            lstm(torch.randn(5, 2, 3), hx)


@pytest.mark.parametrize("which", ["x", "h0", "c0"])
def test_autocast_reads_no_storage_that_is_too_short(which: str) -> None:
    values = {"x": torch.randn(50, 30, 64), "h0": torch.zeros(1, 30, 10), "c0": torch.zeros(1, 30, 10)}
    values[which].untyped_storage().resize_(64)
    with torch.autocast("cpu", B16), pytest.raises(RuntimeError, match="its storage has 64 bytes"):
        fastlstm.LSTM(64, 10)(values["x"], (values["h0"], values["c0"]))


def test_autocast_notices_a_weight_that_changed_before_backward() -> None:
    lstm = fastlstm.LSTM(3, 4)
    with torch.autocast("cpu", B16):
        out, _ = lstm(torch.randn(5, 2, 3))
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_autocast_of_another_device_casts_nothing_here() -> None:
    lstm, x = fastlstm.LSTM(3, 4), torch.randn(5, 2, 3).to(B16)
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        with pytest.raises((RuntimeError, ValueError)):
            lstm(x)
    finally:
        torch.set_autocast_enabled("cuda", before)


_FREED = """
import os, torch, fastlstm
from pathlib import Path
from fastlstm.backends import native
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
lstm = fastlstm.LSTM(700, 700, dtype=torch.bfloat16)
lstm(torch.randn(9, 7, 700).bfloat16())[0].sum().backward()
arrays, before = native.load().cached_bytes(), resident()
fastlstm.empty_cache()
print(before - resident() - arrays)
"""


def test_empty_cache_frees_scratch_memory_of_every_set(isa: str) -> None:
    """In a process of its own; the sums of both weight gradients alone take 16 MB."""
    environment = os.environ | {"FASTLSTM_ISA": isa}
    done = subprocess.run([sys.executable, "-c", _FREED], env=environment, capture_output=True, text=True, timeout=300)
    assert int(done.stdout) > 8 << 20, done.stderr


def test_autocast_with_a_state_biases_and_second_derivatives() -> None:
    torch.manual_seed(8)
    torch_lstm = torch.nn.LSTM(6, 10, num_layers=2)
    lstm = fastlstm.LSTM.from_torch(torch_lstm)
    x, hx = torch.randn(5, 3, 6), (torch.randn(2, 3, 10), torch.randn(2, 3, 10))
    found = []
    for module in (torch_lstm, lstm):
        rows = x.clone().requires_grad_()
        with torch.autocast("cpu", B16):
            out, _ = module(rows, hx)
        (grad,) = torch.autograd.grad(out.float().square().sum(), rows, create_graph=module is lstm)
        found.append([out.detach().float(), grad.detach()])
    (second,) = torch.autograd.grad(grad.square().sum(), rows)
    assert second.isfinite().all()
    assert second.abs().max() > 0
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0.05, atol=0.02)


def test_a_second_call_gives_the_same_bits(threads: None) -> None:
    torch.manual_seed(9)
    lstm, x = fastlstm.LSTM(33, 65, dtype=B16), torch.randn(50, 27, 33).to(B16).requires_grad_()
    first, second = (_gradients(lstm, x, x) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("width", [3, 32, 65])
def test_a_sequence_with_nan_or_inf_changes_no_other(bad: float, width: int, threads: None) -> None:
    """Rows lie side by side in the kernels' buffers, with zeros after them that meet weights of zero."""
    torch.manual_seed(10)
    lstm, x = fastlstm.LSTM(width, width, dtype=B16), torch.randn(6, 5, width).to(B16)
    clean = lstm(x)[0]
    x[2, 3, width - 1] = bad
    out = lstm(x)[0]
    others = [0, 1, 2, 4]
    assert torch.equal(out[:, others], clean[:, others])
    assert torch.equal(out[:2, 3], clean[:2, 3])
    if bad != bad:
        assert out[2:, 3].isnan().all()
    else:
        assert not torch.equal(out[2:, 3], clean[2:, 3])


def test_subnormal_and_huge_numbers() -> None:
    lstm = fastlstm.LSTM(4, 6, dtype=B16)
    for scale in (1e-40, 3e38):
        out, (h, c) = lstm((torch.ones(3, 2, 4) * scale).to(B16))
        assert not any(v.isnan().any() for v in (out, h, c))


def test_float_kernels_refuse_bfloat16() -> None:
    """The native call itself says so; the backend never asks."""
    call = {"double": False, "T": 1, "B": 1, "H": 1, "P": 1, "reverse": False, "threads": 1}
    with (
        isas.use(isas.FLOAT[0]),
        pytest.raises(TypeError, match="expected float or double: baseline does not multiply"),
    ):
        native.load().lstm_forward(**call, bfloat16=1)
    with pytest.raises(TypeError, match="expected float or double"):
        native.load().lstm_forward(**call | {"double": True}, bfloat16=1)
    with pytest.raises(ValueError, match="bfloat16 is 3"):
        native.load().lstm_forward(**call, bfloat16=3)


def test_other_sets_round_through_float32() -> None:
    lstm, x = fastlstm.LSTM(3, 5, dtype=B16), torch.randn(4, 2, 3).to(B16)
    expected = lstm(x)[0]
    with isas.use(isas.FLOAT[-1]):
        torch.testing.assert_close(lstm(x)[0], expected, rtol=0.02, atol=0.02)
        assert "rounded through float32" in fastlstm.last_plan()
