"""Memory that a forward keeps for the backward."""

from __future__ import annotations

import pytest

from benchmarks import memory


@pytest.mark.parametrize(("L", "H"), [(1, 256), pytest.param(2, 128, marks=pytest.mark.full)])
def test_saved_for_backward(benchmark, keep, L: int, H: int):
    benchmark.pedantic(lambda: keep(memory.rows(64, 50, H, L)), rounds=1)
