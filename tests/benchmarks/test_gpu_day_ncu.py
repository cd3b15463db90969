"""What `benchmarks.gpu_day` keeps of Nsight Compute's pages."""

from __future__ import annotations

import csv
import gzip
import re
import sys
import time

import pytest

from benchmarks.gpu_day import executor, ncu, program, sass
from tests.benchmarks.gpu_days import ROOT


def test_the_details_page_is_parsed_into_launches_and_their_metrics():
    launches = ncu.parsed(ncu.CANNED)
    assert [name for name, _ in launches] == [
        f"void cooperative_{way}_kernel<bfloat_t>(KernelParams<{way.capitalize()}Args>)"
        for way in ("forward", "backward")
    ]
    assert launches[0][1]["Duration (us)"] == 143.2
    assert launches[0][1]["stall"].startswith("9.1 cycles waiting for a scoreboard dependency")
    assert launches[1][1] == {"Duration (us)": 201.0}
    assert ncu.parsed("==ERROR== no permission") == []


def test_the_source_page_is_cut_to_the_columns_that_matter(tmp_path):
    forward, backward = sass.launches(ncu.CANNED_SOURCE)
    assert forward.kernel == "void cooperative_forward_kernel<bfloat_t>(KernelParams<ForwardArgs>)"
    assert forward.columns == [
        "Address", "Source", "Warp Stall Sampling (All Samples)", "Warp Stall Sampling (Not-issued Samples)", "# Samples",
        "Instructions Executed", "stall_long_sb", "stall_wait", "stall_long_sb (Not Issued)", "stall_wait (Not Issued)",
    ]  # fmt: skip
    assert forward.rows[1][1] == "@!P0 HMMA.16816.F32 R8, R4, R6, R8"
    assert [len(forward.rows), len(backward.rows)] == [3, 1]
    said = sass.summary(forward)
    assert (said["instructions"], said["samples"], said["stalls"]) == (3, 312, {"long_sb": 282, "wait": 30})
    assert said["hot"][0] == [16, "@!P0 HMMA.16816.F32 R8, R4, R6, R8", 300, "long_sb 280"]
    assert sass.launches(sass.written([forward, backward])) == [forward, backward]


def test_a_source_page_is_saved_compressed_and_summarised(tmp_path, capsys):
    read = list(ncu.source(tmp_path, "cooperative H256 B16", ncu.CANNED_SOURCE))
    assert [row["samples"] for row in read] == [312, 7]
    path = tmp_path / read[0]["file"]
    assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name)
    assert next(csv.reader([gzip.decompress(path.read_bytes()).decode().splitlines()[0]]))[1] == read[0]["kernel"]
    sass.main([str(path)])
    assert "280" in capsys.readouterr().out


def test_an_unreadable_source_page_is_saved_unchanged(tmp_path):
    (row,) = ncu.source(tmp_path, "cooperative H256 B16", "==ERROR== no source page\n")
    assert row["no_source"] == "==ERROR== no source page"
    assert gzip.decompress((tmp_path / row["file"]).read_bytes()) == b"==ERROR== no source page\n"


FAKE_NCU = """#!{python}
import sys
given = sys.argv[1:]
if "-o" in given:
    open(given[given.index("-o") + 1] + ".ncu-rep", "w").write("a report")
    print("==PROF== done")
elif {fault!r} == "options" and ("--print-source" in given or "--print-details" in given):
    sys.exit("unrecognised option")
elif "details" in given:
    from benchmarks.gpu_day import ncu
    print(ncu.CANNED)
elif {fault!r} == "source":
    sys.exit("==ERROR== no source")
else:
    from benchmarks.gpu_day import ncu
    print(ncu.CANNED_SOURCE)
"""


@pytest.mark.parametrize(("fault", "samples"), [("", [312, 7]), ("options", [312, 7]), ("source", [])])
def test_the_details_page_is_read_even_if_the_source_page_fails(tmp_path, monkeypatch, fault, samples):
    fake = tmp_path / "ncu"
    fake.write_text(FAKE_NCU.format(python=sys.executable, fault=fault))
    fake.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(program, "tool", lambda name: str(fake))
    gpu_executor = executor.GpuExecutor({"out": str(tmp_path), "until": time.time() + 60, "lost": [], "stage": "ncu"})
    rows = list(ncu.run(gpu_executor, ncu.items(gpu_executor)[1]))
    assert [row["metrics"]["Duration (us)"] for row in rows if "metrics" in row] == [143.2, 201.0]
    assert [row["samples"] for row in rows if "samples" in row] == samples
    assert ["no source" in row["no_source"] for row in rows if "no_source" in row] == ([] if samples else [True])
    assert "Elapsed Cycles" in (tmp_path / "ncu.txt").read_text()
