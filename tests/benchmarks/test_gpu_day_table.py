"""Rows of `benchmarks.gpu_day` and the table at its end."""

from __future__ import annotations

import json

from benchmarks.gpu_day import row_file, table
from tests.benchmarks.gpu_days import MADE_UP


def test_numbers_that_json_does_not_have_are_words_and_cut_lines_are_left_out(tmp_path):
    store = row_file.RowWriter(tmp_path)
    store.add("right", worst=float("nan"), us=1.23456789, tiling={"groups": 2}, t_=[float("inf")])
    store.add("sweep", stage="other", t=3)
    with open(store.path, "a") as file:
        file.write('{"stage": "right", "wor')
    first, second = row_file.read(store.path)
    assert (first["worst"], first["us"], first["tiling"], first["t_"]) == ("nan", 1.23457, {"groups": 2}, ["inf"])
    assert second["stage"] == "sweep"


def test_the_table_shows_every_stage_of_a_made_up_run(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps({"t": 5.0 + i, **row}) + "\n" for i, row in enumerate(MADE_UP)))
    text = table.render(path)
    for words in (
        "right        code -11, 3.0 s lost single_block f32",
        "Segmentation fault",
        "---- right: 1 of 2, worst nan of what is allowed",
        "single_block bf16  WRONG 1 of 2, nan: odd backward",
        "  bf16 1x512 B16: 1 (2.00) - |\n",
        "f16           H512   dense     B16 5.25",
        "  bf16 H512 B16: 2 (1.5) < 1.75 coop 2x8x1x1 [lean 2.25] 1 WRONG | -\n",
        "  bf16 H256 B64: forward 3.50 (3.25) backward 9.00 (per_step) input 0.50 others 0.75\n",
        "graph: 0 of 1 replays equal; not: ['bf16 512 packed training']",
        "  2x128 B50 tf32: 2.000 (2.00)\n",
        "  35 tf32: 9 (3.00); 27.2\n",
        "  training: cuda 300 (310)\n  most of training: forward 40\n",
        "  cooperative_forward H256 B16: 9 samples, 7 LDS R2, [R3] (wait 5)\n",
        "module bf16 2x512 (1): RuntimeError: no",
    ):
        assert words in text, text
    assert table.render(path, begin=1e9) == "---- stages\n0 rows in raw.jsonl, 0 s in all"


def test_the_table_is_at_most_as_long_as_its_limit(tmp_path):
    path = tmp_path / "raw.jsonl"
    many = [{**row, "t": 1.0, **({"H": h} if "H" in row else {})} for row in MADE_UP for h in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in many))
    assert len(table.render(path)) <= table.MOST
