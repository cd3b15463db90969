"""The algorithm that torch's rules give an nn.LSTM on a GPU."""

from __future__ import annotations

import pytest

from fastlstm.verify.cudnn import PERSIST_STATIC, SMALL_H, STANDARD, algorithm

CALL = {"math": "float16", "H": 512, "I": 128, "B": 64, "layers": 1, "bidirectional": False}
OPTIONS = {"packed": False, "projected": False, "training": True}


def algorithm_of(**changes) -> str:
    return algorithm(**{**CALL, **OPTIONS, **changes})


@pytest.mark.parametrize("H", [256, 384, 1024])
@pytest.mark.parametrize("B", [8, 16, 80, 128])
def test_float16_in_whole_tiles_runs_persist_static(H, B):
    assert algorithm_of(H=H, B=B) == PERSIST_STATIC


@pytest.mark.parametrize(
    "changes",
    [
        {"math": "bfloat16"},
        {"math": "float32"},
        {"math": "tf32"},
        {"layers": 2},
        {"bidirectional": True},
        {"packed": True},
        {"projected": True},
        {"H": 1152},
        {"H": 200},
        {"I": 100},
        {"B": 12},
        {"B": 136},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_any_unsupported_setting_runs_standard(changes, training):
    assert algorithm_of(**changes, training=training) == STANDARD


@pytest.mark.parametrize("math", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_small_h_runs_the_small_h_algorithm_in_every_type(math, layers, bidirectional):
    call = {"math": math, "layers": layers, "bidirectional": bidirectional, "I": 7, "B": 3}
    assert algorithm_of(H=128, **call) == SMALL_H
    assert algorithm_of(H=192, training=False, **call) == SMALL_H
    assert algorithm_of(H=192, **call) == f"{SMALL_H}/{STANDARD}"
    assert algorithm_of(H=193, **call) == algorithm_of(H=193, training=False, **call) == STANDARD


@pytest.mark.parametrize("layout", ["packed", "projected"])
def test_a_small_h_that_is_packed_or_projected_runs_standard(layout):
    assert algorithm_of(H=64, **{layout: True}) == STANDARD
