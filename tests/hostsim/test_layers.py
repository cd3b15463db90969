"""Several layers, or both directions of one, in one launch on the simulated GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import dispatch
from fastlstm.backends.cuda import launch as cuda_launch
from fastlstm.ops.arguments import Spec
from fastlstm.testing import layers as testing
from fastlstm.testing.cases import Case
from tests.hostsim import backend as hostsim
from tests.hostsim.shapes import BF16, F16, TF32, dense, dtype_of

PACKED = Case(id="packed", T=5, B=9, I=3, H=24, P=24, lengths=(5, 4, 4, 3, 3, 2, 2, 1, 1))
CASES = (
    dense(4, 5, 16),
    dense(1, 1, 8),
    dense(4, 17, 40, reset=True),
    dense(3, 9, 24, initial=False),
    dense(3, 7, 24, reverse=True, reset=True),
    PACKED,
    replace(PACKED, id="packed-reset-reverse", reset=True, reverse=True),
    Case(id="ids", T=4, B=9, I=0, H=24, P=24, V=5, ids=True),
    replace(PACKED, id="packed-ids", I=0, V=5, ids=True, reset=True),
)
SMS = 40


def _check(case: Case, math: str, count: int, chained: bool, seed: int = 0, save: int = 1, **settings) -> None:
    with hostsim.settings(sms=SMS, shared_kib=227, seed=seed, tf32=math == TF32, **settings):
        testing.check(
            hostsim.BACKEND, case, dtype_of(math), count=count, chained=chained, save=save, seed=seed, tf32=math == TF32
        )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("count", "chained"), [(2, True), (3, True), (2, False)])
def test_layers_and_directions_are_right_in_one_launch(hostsim_library, monkeypatch, case, count, chained):
    k = 2 * CASES.index(case) + count
    if k % 2:  # several launches a call
        monkeypatch.setattr(cuda_launch, "_CHUNK_BYTES", 1)
        monkeypatch.setattr(cuda_launch, "_CHUNK_STEPS", 2)
    _check(case, (BF16, TF32, F16)[k % 3], count, chained, seed=k, save=CASES.index(case) % 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_every_schedule_of_the_blocks_of_layers(hostsim_library, seed):
    for case in CASES:
        for count, chained in ((2, True), (4, True), (2, False)):
            _check(case, (BF16, TF32, F16)[seed % 3], count, chained, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("math", "H", "B", "sms"), [(TF32, 132, 3, 40), (TF32, 264, 3, 40), (TF32, 264, 33, 40), (BF16, 40, 33, 12)]
)
def test_several_spans_a_warp_matrices_in_shared_memory_and_several_passes(hostsim_library, math, H, B, sms):
    for count, chained in ((2, True), (2, False)):
        with hostsim.settings(sms=sms, shared_kib=227, tf32=math == TF32, flags=hostsim.SOME):
            backward = hostsim.BACKEND._layers(_spec(math, H, B), count, chained, backward=True)
            assert (backward is not None) == (H < 264)  # no instance has so many spans
            testing.check(
                hostsim.BACKEND, dense(2, B, H), dtype_of(math), count=count, chained=chained, tf32=math == TF32
            )


def _spec(math: str, H: int, B: int) -> Spec:
    return testing.inputs_of(dense(2, B, H), dtype_of(math), 1, True)[0].spec()


def test_the_same_bits_as_layer_by_layer_on_every_schedule(hostsim_library):
    """Directions run as one layer does; layers above others do not round their input side, but no schedule changes a bit."""
    outputs = []
    for seed in range(4):
        inputs = testing.inputs_of(PACKED, torch.bfloat16, 3, True)
        with hostsim.settings(sms=SMS, shared_kib=227, seed=seed):
            outputs.append(hostsim.BACKEND.forward_layers(inputs, True))
    for other in outputs[1:]:
        assert all(a.equal(b) for x, y in zip(outputs[0], other, strict=True) for a, b in zip(x, y, strict=True))


def _module(layers: int, directions: int, dtype: torch.dtype) -> fastlstm.LSTM:
    torch.manual_seed(0)
    return fastlstm.LSTM(6, 24, layers, bidirectional=directions == 2, dtype=dtype)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("layers", "directions"), [(3, 1), (2, 2)])
def test_a_module_gives_what_it_gives_layer_by_layer(hostsim_library, layers, directions, packed):
    """Output, states and all gradients, second ones too, with launches of several layers and without."""
    x = torch.randn(5, 7, 6, dtype=torch.float32)
    results = []
    for together in (False, True):
        lstm, given = _module(layers, directions, torch.float32), x.clone().requires_grad_(True)
        source = pack_padded_sequence(given, torch.tensor([5, 5, 4, 3, 2, 1, 1])) if packed else given
        with hostsim.settings(sms=SMS, shared_kib=227, tf32=True, layers=together), fastlstm.backend("hostsim"):
            out, (h_n, c_n) = lstm(source)
            out = out.data if packed else out
            assert ("in one launch" in dispatch.last_plan()) == together
            loss = out.square().sum() + h_n.sum() + c_n.square().sum()
            grads = torch.autograd.grad(loss, [given, *lstm.parameters()], create_graph=True)
            second = torch.autograd.grad(grads[0].square().sum(), given)
        results.append((out, h_n, c_n, *grads, *second))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3)


def test_what_needs_layers_one_by_one_gets_them(hostsim_library):
    """Dropout between layers, a projection, a graph of torch.compile's making: each layer by itself."""
    x = torch.randn(3, 2, 6)
    dropped = fastlstm.LSTM(6, 8, 2, dropout=0.5)
    projected = fastlstm.LSTM(6, 8, 2, proj_size=4)
    with hostsim.settings(sms=SMS, shared_kib=227, tf32=True, layers=True), fastlstm.backend("hostsim"):
        for lstm in (dropped.train(), projected):
            lstm(x)
            assert "in one launch" not in dispatch.last_plan()
        dropped.eval()(x)
        assert "2 layers in one launch" in dispatch.last_plan()
