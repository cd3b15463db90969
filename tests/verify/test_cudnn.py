"""The algorithm that torch's rules give an nn.LSTM on a GPU."""

from __future__ import annotations

import pytest

from fastlstm.verify.cudnn import PERSIST_STATIC, SMALL_H, STANDARD, algorithm

CALL = {"math": "float16", "H": 512, "I": 128, "B": 64, "layers": 1, "bidirectional": False}
KIND = {"packed": False, "projected": False, "training": True}


def of(**changes) -> str:
    return algorithm(**{**CALL, **KIND, **changes})


@pytest.mark.parametrize("H", [256, 384, 1024])
@pytest.mark.parametrize("B", [8, 16, 80, 128])
def test_half_precision_in_whole_tiles_stays_on_the_chip(H, B):
    assert of(H=H, B=B) == PERSIST_STATIC


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
def test_one_thing_that_does_not_fit_makes_it_standard(changes, training):
    assert of(**changes, training=training) == STANDARD


@pytest.mark.parametrize("math", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_small_h_stays_in_every_type(math, layers, bidirectional):
    call = {"math": math, "layers": layers, "bidirectional": bidirectional, "I": 7, "B": 3}
    assert of(H=128, **call) == SMALL_H
    assert of(H=192, training=False, **call) == SMALL_H
    assert of(H=192, **call) == f"{SMALL_H}/{STANDARD}"
    assert of(H=193, **call) == of(H=193, training=False, **call) == STANDARD


@pytest.mark.parametrize("other", ["packed", "projected"])
def test_a_small_h_packed_or_projected_is_standard(other):
    assert of(H=64, **{other: True}) == STANDARD
