"""benchmarks/int8.py: all contenders compute the same, and each is timed."""

from __future__ import annotations

import pytest

from benchmarks import int8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [False, True])
def test_every_contender_is_compared_and_timed(steps: bool) -> None:
    contenders = int8.step_contenders(2, 33, 3) if steps else int8.forward_contenders(4, 3, 33)
    assert list(contenders) == ["nn.LSTM", "torch int8", "float32", "int8"]
    timed = int8.timed(contenders, seconds=0.05)
    assert list(timed) == list(contenders)
    assert timed["int8"]["ratio"] == 1
    assert all(values["us"] > 0 for values in timed.values())
    assert len(int8.lines({"case": timed})) == 5


def test_errors_of_both_are_told() -> None:
    told = int8.errors(H=17, T=20, B=2)
    assert list(told) == ["int8 largest", "int8 rms", "torch int8 largest", "torch int8 rms"]
    assert 0 < told["int8 rms"] < told["int8 largest"] < 0.05
