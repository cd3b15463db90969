"""The Triton backend behind the module, in Triton's interpreter: end to end, its reasons, its plans, warming up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata, util

import pytest

if util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import dispatch
from fastlstm.backends import load, native
from fastlstm.backends.base import BackendError
from fastlstm.backends.triton import backend, launch, planner
from fastlstm.ops.arguments import Grads, OpInputs, Saved, Spec
from fastlstm.testing import accuracy, cases

TRITON = load("triton")
EPS = torch.finfo(torch.float32).eps
H100 = planner.GpuLimits("H100", 90, 132, 227 << 10)


@pytest.fixture
def ieee() -> Iterator[None]:
    """Multiply float32 exactly, as cuDNN does when told so."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _call(dtype: torch.dtype = torch.float32) -> Spec:
    case = cases.Case("small", 3, 5, 4, 16, 16)
    i = cases.make(case, dtype)
    return OpInputs(*i, case.reverse, 1).spec()


def _check(actual: list[torch.Tensor], baseline: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """Hold float32 results to twice nn.LSTM's own error against float64."""
    assert len(actual) == len(baseline) == len(exact)
    for k, (a, b, c) in enumerate(zip(actual, baseline, exact, strict=True)):
        accuracy.check(f"tensor {k}", a, c, b)


def test_two_bidirectional_layers_on_packed_input_by_the_rule_of_accuracy() -> None:
    """Two layers, both directions, packed, through the module: outputs and all gradients as nn.LSTM's."""
    lstm, torch_lstm, exact_lstm = (
        module_class(6, 20, 2, bidirectional=True) for module_class in (fastlstm.LSTM, *[torch.nn.LSTM] * 2)
    )
    torch_lstm.load_state_dict(lstm.state_dict())
    exact_lstm.load_state_dict(lstm.state_dict())
    x = pack_padded_sequence(torch.randn(5, 4, 6), torch.tensor([3, 5, 1, 4]), enforce_sorted=False)
    weights = [torch.randn(13, 40), torch.randn(4, 4, 20), torch.randn(4, 4, 20)]

    def run(module: torch.nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
        data = x.data.to(dtype, copy=True).requires_grad_()
        out, state = module(PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices))
        sum((a * b).sum() for a, b in zip((out.data, *state), weights, strict=True)).backward()
        return [out.data, *state, data.grad, *(p.grad for p in module.parameters())]

    with fastlstm.backend("triton"):
        actual = run(lstm, torch.float32)
    assert dispatch.last_plan().startswith("triton: single_block (tf32), 16 rows × 32 units, 8 warps, 2 stages; ")
    assert dispatch.last_plan().endswith("; in Triton's interpreter")
    _check(actual, run(torch_lstm, torch.float32), run(exact_lstm.double(), torch.float64))


def test_a_token_lstm_trains_as_nn_embedding_and_nn_lstm(ieee: None) -> None:
    """A TokenLSTM with an embedding trains as nn.Embedding and nn.LSTM do."""
    token_lstm = fastlstm.TokenLSTM(11, 8, 72, num_layers=2)
    ids, mix = torch.randint(11, (4, 3)), torch.randn(4, 3, 72)

    def torch_results(dtype: torch.dtype) -> list[torch.Tensor]:
        embedding, lstm = torch.nn.Embedding(11, 8), torch.nn.LSTM(8, 72, 2)
        embedding.load_state_dict(token_lstm.embedding.state_dict())
        lstm.load_state_dict(token_lstm.lstm.state_dict())
        embedding, lstm = embedding.to(dtype), lstm.to(dtype)
        out, state = lstm(embedding(ids))
        (out * mix).sum().backward()
        return [out, *state, embedding.weight.grad, *(p.grad for p in lstm.parameters())]

    with fastlstm.backend("triton"):
        out, state = token_lstm(ids)
        (out * mix).sum().backward()
    assert dispatch.last_plan().startswith("triton: streamed (ieee), 4 rows × 32 units, blocks of 32, ")
    actual = [out, *state, token_lstm.embedding.weight.grad, *(p.grad for p in token_lstm.lstm.parameters())]
    _check(actual, torch_results(torch.float32), torch_results(torch.float64))


def test_projected_bfloat16() -> None:
    """Half types and projection through the module: what is returned is bfloat16, the per-step kernel ran."""
    lstm = fastlstm.LSTM(5, 12, proj_size=7, dtype=torch.bfloat16)
    with fastlstm.backend("triton"), torch.no_grad():
        out, (h_n, c_n) = lstm(torch.randn(3, 2, 5, dtype=torch.bfloat16))
    assert dispatch.last_plan().startswith("triton: per_step (half), ")
    assert (out.dtype, out.shape, h_n.shape, c_n.shape) == (torch.bfloat16, (3, 2, 7), (1, 2, 7), (1, 2, 12))
    assert torch.equal(out[-1], h_n[0])


def test_precision_follows_torch(ieee: None) -> None:
    assert "(ieee)" in TRITON.describe(_call())
    torch.backends.cudnn.allow_tf32 = True
    assert "(tf32)" in TRITON.describe(_call())
    assert "(half)" in TRITON.describe(_call(torch.bfloat16))


@pytest.mark.parametrize("allowed", [True, False])
def test_products_follow_cudnns_switch_as_the_kernels_do(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    """Input side, products with projection, gates again: by cuDNN's switch, whatever torch's own products do; then back."""
    cudnn, matmul, precisions = torch.backends.cudnn, torch.backends.cuda.matmul, []
    monkeypatch.setattr(cudnn, "allow_tf32", allowed)
    matmul.fp32_precision, before = "ieee" if allowed else "tf32", matmul.fp32_precision

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                precisions.append(matmul.fp32_precision)
            return func(*args, **(kwargs or {}))

    case = cases.Case("projected", 2, 3, 4, 16, 7, projection=True)
    op_inputs = OpInputs(*cases.make(case, torch.float32), False, 2)
    grads = cases.make_grads(case, torch.float32)
    with Products():
        assert f"({'tf32' if allowed else 'ieee'})" in TRITON.describe(_call())
        h, c, gates, _, _ = TRITON.forward(op_inputs)
        TRITON.backward(op_inputs, Saved(h, c, gates), Grads(*grads))
    # the input side, W_hr in two steps, input side and W_hh again, W_hr in two steps
    assert len(precisions) == 1 + 2 + 2 + 2
    assert set(precisions) == {"tf32" if allowed else "ieee"}
    after, matmul.fp32_precision = matmul.fp32_precision, before
    assert after == ("ieee" if allowed else "tf32")


def test_explain_gives_the_planners_reasons() -> None:
    lstm = fastlstm.LSTM(8, 200)
    with fastlstm.backend("triton"):
        text = fastlstm.explain(lstm, torch.randn(4, 3, 8))
    assert text.startswith("runs on triton ('triton' is forced): per_step (tf32), ")
    assert "W_hh has 625 KiB" in text
    assert "single_block: W_hh of H 200 does not stay on one multiprocessor" in text


def test_a_call_that_it_does_not_take_has_a_reason() -> None:
    assert TRITON.unsupported_reason(_call()) is None
    assert "float64" in TRITON.unsupported_reason(_call(torch.float64))
    assert "elements" in TRITON.unsupported_reason(replace(_call(), H=30000, P=30000))
    assert "elements" in TRITON.unsupported_reason(
        replace(_call(), H=23170, P=23170)
    )  # with padding past 32-bit offsets


def test_a_device_that_it_does_not_run_on_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = replace(_call(), device=torch.device("cuda", 0))
    assert "TRITON_INTERPRET is set" in TRITON.unsupported_reason(cuda)
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    reason = TRITON.unsupported_reason(_call())
    assert ("there is a GPU" if torch.cuda.is_available() else "there is no GPU") in reason
    assert "TRITON_INTERPRET=1" in reason
    assert "tensors are on meta" in TRITON.unsupported_reason(replace(_call(), device=torch.device("meta")))
    old = planner.GpuLimits("Old GPU", 75, 40, 64 << 10)
    for device, expected in (
        (old, "Old GPU has compute capability 7.5, 8.0 or newer is needed"),
        (replace(H100, shared_bytes=4096), "bytes of shared memory, H100 gives a block 4096"),
    ):
        monkeypatch.setattr(backend, "gpu", lambda _, device=device: device)
        assert expected in TRITON.unsupported_reason(cuda)
    monkeypatch.setattr(backend, "gpu", lambda _: H100)
    assert TRITON.unsupported_reason(cuda) is None


def test_it_plans_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_attempt", lambda: (None, "there is none"))
    backend._cached_choice.cache_clear()
    assert TRITON.unsupported_reason(_call()) is None
    assert TRITON.describe(_call()).startswith("triton: single_block (")


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, "Triton is not installed; pip install 'triton>=3.5'"),
        ({"triton": "3.4.0"}, "Triton is 3.4.0, 3.5 or newer is needed"),
        ({"pytorch-triton": "3.4.0+git1234"}, "Triton is 3.4.0+git1234, 3.5 or newer"),
        ({"triton": "3.5.0"}, None),
        ({"pytorch-triton": "3.10.0+git1234"}, None),
    ],
)
def test_a_missing_or_old_triton_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], expected: str | None
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(metadata, "version", version)
    backend.missing.cache_clear()
    try:
        reason = TRITON.unsupported_reason(_call())
        if expected is None:
            assert reason is None
            newer = installed.get("pytorch-triton")
            assert (
                "; Triton 3.10.0+git1234 is newer than 3.9, the last one tried" in TRITON.describe(_call())
            ) == bool(newer)
        else:
            assert reason.startswith(expected)
            with pytest.raises(BackendError, match="Triton is "):
                fastlstm.warm_up(fastlstm.LSTM(4, 5), torch.randn(2, 3, 4))
    finally:
        backend.missing.cache_clear()


def test_forced_backend_that_cannot_run_says_why() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    with fastlstm.backend("triton"), pytest.raises(BackendError, match="float64"):
        fastlstm.LSTM(4, 5, dtype=torch.float64)(x)


def test_asking_does_not_import_triton() -> None:
    """In a fresh process: importing fastlstm or asking the backend leaves Triton alone, and the answer says what to do.

    Triton imported without its interpreter, asking for it comes too late, and the answer says so.
    """
    code = (
        "import os, sys, torch, fastlstm\n"
        "from fastlstm.backends import load\n"
        "from fastlstm.doctor import small_call\n"
        "print(load('triton').unsupported_reason(small_call(torch.device('cpu'))))\n"
        "assert 'triton' not in sys.modules\n"
        "import triton\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "print(load('triton').unsupported_reason(small_call(torch.device('cpu'))))\n"
        "assert 'fastlstm.backends.triton.math' not in sys.modules\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "TRITON_INTERPRET=1" in first
    assert second.startswith("TRITON_INTERPRET was set after Triton had been imported")


def test_triton_imported_in_another_mode_is_refused_before_the_kernels_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are decorated when they load: that they would not be as Triton is, is said before; after, they just run."""
    cuda = replace(_call(), device=torch.device("cuda", 0))
    monkeypatch.setattr(backend, "gpu", lambda _: H100)
    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        assert TRITON.unsupported_reason(_call()) is None  # the kernels of these tests are the interpreter's
        patch.delitem(sys.modules, "fastlstm.backends.triton.math")
        for call in (_call(), cuda):
            assert "and it no longer is; leave it as it was" in TRITON.unsupported_reason(call)
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(backend, "interpreted", lambda: False)
        assert "set it before Python starts" in TRITON.unsupported_reason(_call())
        assert TRITON.unsupported_reason(cuda) is None  # its kernels are compiled ones already
        patch.delitem(sys.modules, "fastlstm.backends.triton.math")
        assert "set it before Python starts" in TRITON.unsupported_reason(cuda)


@pytest.mark.parametrize("training", [False, True])
def test_warm_up_compiles_and_launches_nothing(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    """Every kernel of a call is handed to the compiler, for a loss on the output and on the last states, and none runs."""
    compiled = []

    def compile_only(kernel, grid, args, options) -> None:
        compiled.append((kernel.__name__, args[2] is not None))

    monkeypatch.setattr(launch, "compile_only", compile_only)
    fastlstm.warm_up(fastlstm.LSTM(4, 16), torch.randn(2, 3, 4), training=training)
    assert [name for name, _ in compiled] == (["forward", "backward", "backward"] if training else ["forward"])
    assert [has_dh_n for name, has_dh_n in compiled if name == "backward"] == ([False, True] if training else [])
