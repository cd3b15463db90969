"""Text of a model or a user is printed as it is: no markup, no wrapping, no widened tabs, nothing dropped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastlstm.charlm import CharLM
from tests.cli.quick_run import OPTIONS

# What a console would change: markup, emoji codes, tabs, form feeds, control characters, words past the width.
ITEM = "[bold]a[/bold]\t:smile:\f[red]\x0b\x1b7\x85" + 30 * "wide word " + "\u2028世界"


@pytest.fixture
def hostile(run):
    Path("hostile.txt").write_text((ITEM + "\n") * 60, encoding="utf-8")
    code, _, err = run("train", "hostile.txt", "--checkpoint-dir", "hostile", *OPTIONS)
    assert (code, err) == (0, "")
    return "hostile"


def test_a_single_text_and_its_prime_are_printed_as_drawn(run, hostile):
    expected = CharLM.load(hostile).sample(prime=ITEM, length=200, seed=1)
    assert expected.startswith(ITEM)
    assert run("sample", hostile, "--prime", ITEM, "--length", 200, "--seed", 1)[1] == expected + "\n"


def test_several_texts_and_their_primes_are_printed_as_drawn(run, hostile):
    expected = CharLM.load(hostile).sample(num=3, prime=ITEM, length=200, seed=1)
    _, out, _ = run("sample", hostile, "--num", 3, "--prime", ITEM, "--length", 200, "--seed", 1)
    assert re.sub(r"(?m)^\d ─+\n", "", out) == "".join(text + "\n" for text in expected)


def test_the_report_of_unique_shows_whole_lines(run, hostile):
    code, out, _ = run("sample", hostile, "--unique", "--prime", ITEM + "\n" + ITEM, "--length", 1, "--seed", 1)
    assert code == 0
    assert f"\n{ITEM}  train" in out


def test_score_shows_lines_as_they_are(run, hostile):
    code, out, _ = run("score", hostile, "hostile.txt", "--num", 1)
    assert code == 0
    assert out.count(ITEM + "⏎") == 1


def test_a_name_with_markup_is_shown_and_not_read(run, hostile):
    """Also in the title of `inspect`, where an unopened `[/]` was an error."""
    name = "[/]:smile:[bold]m.safetensors"
    Path(name.replace("/", "∕")).write_bytes(Path("hostile/best.safetensors").read_bytes())
    code, out, err = run("inspect", name.replace("/", "∕"))
    assert (code, err) == (0, "")
    assert name.replace("/", "∕") in out
    assert run("sample", ":smile:[b]")[2].startswith("error: there is no checkpoint :smile:[b]: expected")


def test_an_error_is_one_line_whatever_the_name(run):
    _, _, err = run("score", "names", "a\nb\x1b")
    assert err == r"error: cannot read a\nb\x1b: No such file or directory" + "\n"


def test_prime_file_is_as_prime(run, hostile):
    """In what is printed, in --unique and in --balance."""
    Path("prime.txt").write_text(ITEM + "\n[a", encoding="utf-8")
    for options in ([], ["--num", 2], ["--unique"], ["--balance"]):
        words = ["sample", hostile, "--length", 20, "--seed", 1, *options]
        as_option = run(*words, "--prime", ITEM + "\n[a")
        assert run(*words, "--prime-file", "prime.txt") == as_option
    assert ITEM in run("sample", hostile, "--unique", "--prime-file", "prime.txt", "--length", 5)[1]
    brackets = re.search(
        r"\[ \] +(\d+)", run("sample", hostile, "--balance", "--prime-file", "prime.txt", "--argmax")[2]
    )
    assert int(brackets[1]) >= 4  # those of the prime


def test_a_training_item_in_a_prime_file_is_not_new(run):
    Path("items.txt").write_text("".join(f"item {n}\n" for n in range(600)))
    run("train", "items.txt", "--lines", "--checkpoint-dir", "items", *OPTIONS)
    lm = CharLM.load("items")
    split = lm.divide(lm.corpus())
    item = lm.corpus().text(*split.train_spans[0])
    Path("prime.txt").write_text(item.strip() + "\n")
    _, out, _ = run("sample", "items", "--unique", "--num", 1, "--prime-file", "prime.txt", "--seed", 1)
    assert re.search(rf"(?m)^{item.strip()} +train", out)


def test_score_reads_the_text_as_it_is(run, hostile):
    """Blank lines count, nothing is added at the start or the end; of a text with a new character, `skip` the character."""
    Path("part.txt").write_text("wide\n\n word", encoding="utf-8")
    (one,) = CharLM.load(hostile).score(["wide\n\n word"])
    code, out, _ = run("score", hostile, "part.txt")
    assert code == 0
    assert f"3 lines, {one.mean:.4f} nats a character" in out
    Path("odd.txt").write_text("wideé\n\n word", encoding="utf-8")
    code, _, err = run("score", hostile, "odd.txt")
    assert code == 2
    assert "odd.txt has 1 character that the model never saw: 'é'" in err
    code, out, _ = run("score", hostile, "odd.txt", "--unknown", "skip")
    assert code == 0
    assert f"3 lines, {one.mean:.4f} nats a character" in out
    assert "wideé⏎" in out
    assert out.endswith("odd.txt has 1 character that the model never saw ('é'): left out\n")


def test_evaluate_skips_what_the_model_never_saw(run, hostile):
    Path("odd.txt").write_text("wide wordé " * 40, encoding="utf-8")
    assert run("evaluate", hostile, "odd.txt")[0] == 2
    code, out, _ = run("evaluate", hostile, "odd.txt", "--unknown", "skip")
    assert code == 0
    assert "odd.txt: 4" in out  # 400 characters or 399: the first has nothing before it
    assert "odd.txt has 40 characters that the model never saw ('é'): left out" in out
    assert (
        run("evaluate", hostile, "odd.txt", "--unknown", "add")[2]
        == "error: --unknown is 'add', expected error, skip\n"
    )
