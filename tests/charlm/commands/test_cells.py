"""`fastlstm cells`: the table and the JSON."""

from __future__ import annotations

import json

import pytest

from fastlstm import cli


def test_cells_prints_a_table_and_writes_json(small_run, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["cells", str(small_run.folder), str(text), "-o", "cells.json", "--length", "6000"])
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "cells.json").read_text())
    assert content["characters"] == 6000
    for row in content["rows"]:
        assert row["label"] in printed
    assert "of 24 cells pass" in printed
    with pytest.raises(SystemExit):
        cli.main(["cells", str(small_run.folder), str(text), "--length", "6000", "--json"])
    assert json.loads(capsys.readouterr().out) == content
