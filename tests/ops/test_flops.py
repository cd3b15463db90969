"""FLOPs under torch's FlopCounterMode: those that torch counts for nn.LSTM in float64, where its products are its own mm.

(In float32 nn.LSTM is one operation of oneDNN on a CPU, and torch counts 0 for it.)
"""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.utils.flop_counter import FlopCounterMode

import fastlstm
from fastlstm import dispatch
from tests.modules.pairs import leaves

OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "proj_size": 2},
    {"proj_size": 2, "bidirectional": True},
]
T, B, I, H = 4, 3, 2, 5


def _input(layout: str, dtype: torch.dtype) -> Tensor | rnn.PackedSequence:
    x = torch.randn(T, B, I, dtype=dtype)
    return rnn.pack_padded_sequence(x, [4, 2, 2]) if layout == "packed" else x


def _state(lstm: nn.RNNBase, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    n = lstm.num_layers * (1 + lstm.bidirectional)
    sizes = (lstm.proj_size or lstm.hidden_size, lstm.hidden_size)
    return tuple(torch.randn(n, B, size, dtype=dtype, requires_grad=True) for size in sizes)


def _counts(lstm: nn.Module, x: object, hx: object = None) -> tuple[int, int]:
    """FLOPs of the forward pass and of the whole training step."""
    with FlopCounterMode(display=False) as counter:
        outputs = leaves(lstm(x) if hx is None else lstm(x, hx))
        forward = counter.get_total_flops()
        sum(v.sum() for v in outputs).backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layout", "given"), list(itertools.product(["dense", "packed"], ["plain", "gradients"])))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_counts_are_those_of_nn_lstm(options: dict, layout: str, given: str, dtype: torch.dtype) -> None:
    """With gradients of x, h0 and c0 and without."""
    torch_lstm, lstm = nn.LSTM(I, H, dtype=torch.float64, **options), fastlstm.LSTM(I, H, dtype=dtype, **options)
    by_module = []
    for module, own in ((torch_lstm, torch.float64), (lstm, dtype)):
        x, hx = _input(layout, own), None
        if given == "gradients":
            hx = _state(module, own)
            x = rnn.PackedSequence(x.data.requires_grad_(), *x[1:]) if layout == "packed" else x.requires_grad_()
        by_module.append(_counts(module, x, hx))
    assert by_module[1] == by_module[0]
    assert by_module[0][0] > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_inference_counts_are_those_of_nn_lstm(options: dict) -> None:
    for shape, mode in itertools.product([(1, 2, I), (T, B, I)], [torch.no_grad, torch.inference_mode]):
        counts = []
        for cls, dtype in ((nn.LSTM, torch.float64), (fastlstm.LSTM, torch.float32)):
            lstm, x = cls(I, H, dtype=dtype, **options), torch.randn(shape, dtype=dtype)
            with mode(), FlopCounterMode(display=False) as counter:
                lstm(x)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_backward_of_a_call_that_was_not_counted_counts_backward_alone(options: dict) -> None:
    counts = []
    for cls, dtype in ((nn.LSTM, torch.float64), (fastlstm.LSTM, torch.float32)):
        lstm, x = cls(I, H, dtype=dtype, **options), torch.randn(T, B, I, dtype=dtype)
        out = lstm(x)[0]
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_frozen_weights_count_as_in_nn_lstm() -> None:
    counts = []
    for cls, dtype in ((nn.LSTM, torch.float64), (fastlstm.LSTM, torch.float32)):
        lstm = cls(I, H, 2, dtype=dtype)
        for name, p in lstm.named_parameters():
            p.requires_grad_("l1" in name and "weight_hh" not in name)
        counts.append(_counts(lstm, torch.randn(T, B, I, dtype=dtype)))
    assert counts[0] == counts[1]


def test_a_lookup_counts_nothing_and_a_table_one_product() -> None:
    """One-hot ids: no input product at all. An embedding: V·E·4H once, and not for every row."""
    V, E = 7, 2
    recurrence, table = 2 * T * B * 4 * H * H, 2 * V * E * 4 * H
    ids = torch.randint(V, (T, B))
    for embedding, forward in ((None, recurrence), (E, recurrence + table)):
        model = fastlstm.TokenLSTM(V, embedding, H)
        backward = 2 * recurrence - 2 * B * 4 * H * H + (0 if embedding is None else 2 * table)
        assert _counts(model, ids) == (forward, forward + backward)


def test_recompute_counts_the_gates_again() -> None:
    x = torch.randn(T, B, I)
    forward, step = _counts(fastlstm.LSTM(I, H), x)
    assert _counts(fastlstm.LSTM(I, H, recompute=True), x) == (forward, step + forward)


def test_counts_do_not_depend_on_which_path_was_measured_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "prefers_torch", lambda spec: True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fastlstm.LSTM(I, H)(torch.randn(T, B, I))
    assert counter.get_total_flops() == 2 * T * B * 4 * H * (I + H)


def test_a_formula_of_the_user_s_goes_before() -> None:
    op = torch.ops.fastlstm.lstm_forward
    with FlopCounterMode(display=False, custom_mapping={op: lambda *_, **__: 7}) as counter, torch.no_grad():
        fastlstm.LSTM(I, H)(torch.randn(T, B, I))
    assert counter.get_flop_counts()["Global"] == {op: 7}


def test_counts_belong_to_the_module_that_ran() -> None:
    model = nn.ModuleDict({"first": fastlstm.LSTM(I, H), "second": nn.Linear(H, 2)})
    with FlopCounterMode(display=False) as counter:
        model["second"](model["first"](torch.randn(T, B, I))[0])
    assert sum(counter.get_flop_counts()["LSTM"].values()) == 2 * T * B * 4 * H * (I + H)


def test_importing_fastlstm_does_not_import_the_counter() -> None:
    """It imports Triton, which takes longer than all of this package."""
    code = "import sys, fastlstm; sys.exit('torch.utils.flop_counter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
