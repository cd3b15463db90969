"""`fastlstm visualize`: its options, its answers, its errors."""

from __future__ import annotations

import re

import pytest

from fastlstm import cli
from tests.charlm.page.test_visualize import data_of


def test_visualize_writes_a_page_of_the_chosen_part(small_run, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["visualize", str(small_run.folder), str(text), "-o", "page.html", "--length", "700", "--start", "30"])
    assert ended.value.code in (0, None)
    data = data_of((tmp_path / "page.html").read_text())
    assert data["n"] == 700
    assert data["training"]
    assert "700 characters" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["visualize", str(small_run.folder), str(text), "--start", "9999999"])
    assert ended.value.code == 2
    assert "nothing at 9,999,999" in capsys.readouterr().err


@pytest.mark.parametrize("argument", [True, False])
def test_a_page_names_files_without_the_folders_of_the_machine(small_run, text, tmp_path, argument):
    """In its title, its notes and its data; the text named by its full path, or the model's own."""
    text_with = tmp_path / "with.txt"
    text_with.write_text("é" + text.read_text())
    named = [str(text_with)] if argument else []
    with pytest.raises(SystemExit):
        cli.main(["visualize", str(small_run.folder), *named, "-o", "page.html", "--length", "700"])
    html = (tmp_path / "page.html").read_text()
    shown = "with.txt" if argument else "babble.txt, validation part"
    assert f"<title>run · reading {shown}</title>" in html
    assert data_of(html)["text"] == shown
    assert len(data_of(html)["notes"]) == int(argument)
    assert str(tmp_path) not in html


def test_color_blind_chooses_the_scale_and_errors_name_the_option(small_run, text, tmp_path, capsys):
    """Colours that all can tell apart from the start; what could not be written names the option that chose it."""
    for flags, chosen in (([], "article"), (["--color-blind"], "safe")):
        with pytest.raises(SystemExit):
            cli.main(["visualize", str(small_run.folder), str(text), "--length", "150", *flags])
        selected = re.findall(r'<option value="(\w+)" selected>', (tmp_path / "page.html").read_text())
        assert selected == [chosen]
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["visualize", str(small_run.folder), str(text), "--length", "150", "-o", "nowhere/page.html"])
    assert end.value.code == 2
    assert "make room or choose another --output" in capsys.readouterr().err
