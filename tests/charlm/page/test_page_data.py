"""Traces packed into the page, within its budget."""

from __future__ import annotations

from fastlstm.charlm import trace
from fastlstm.charlm.page import page_data
from tests.charlm.page.test_visualize import SYMBOLS, TEXT
from tests.charlm.planted import untrained


def test_the_last_cells_in_order_are_left_out_beyond_the_budget():
    lm = untrained(SYMBOLS, 8, 2)
    parts = [trace(lm, TEXT)]
    traces = page_data.CellTraces.from_trace(parts, len(TEXT))
    order = [(1, 5), (0, 2), *((k, u) for k in range(2) for u in range(8) if (k, u) not in {(1, 5), (0, 2)})]
    colours, rest = page_data.fit_budget(traces, order, 10**9)
    assert len(colours) == len(rest) == 16
    everything = sum(map(len, colours.values()))
    colours, rest = page_data.fit_budget(traces, order, everything * 8 // 5)
    assert len(colours) == 16
    assert next(iter(rest)) == "1:5"
    assert 0 < len(rest) < 16
    budget = everything // 2
    colours, rest = page_data.fit_budget(traces, order, budget)
    assert list(colours)[:2] == ["1:5", "0:2"]
    assert 2 < len(colours) < 16
    assert set(rest) < set(colours)
    assert sum(map(len, colours.values())) + sum(len(one["data"]) for one in rest.values()) <= budget
