"""benchmarks/instructions.py: what is read of callgrind's output, and, where valgrind is installed, a count."""

from __future__ import annotations

import shutil

import pytest

from benchmarks import instructions

PART = "version: 1\npart: 2\ndesc: Trigger: dump one-step\npositions: line\nevents: Ir\nsummary: 6978634\n"


def test_a_part_of_a_profile_names_its_case_and_gives_the_instructions_of_one_call():
    assert instructions.read_profile(PART) == ("one-step", 69786)


@pytest.mark.parametrize("missing", ["desc: Trigger: dump one-step\n", "summary: 6978634\n"])
def test_what_callgrind_wrote_unasked_is_refused(missing):
    with pytest.raises(ValueError, match="no part of a profile"):
        instructions.read_profile(PART.replace(missing, ""))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_every_call_is_counted():
    counted = instructions.count(instructions.TREE)
    assert [*counted][:: len(counted) - 1] == ["one-step", "training-step"]
    assert len(counted) == 8
    assert all(n > 10_000 for n in counted.values())
