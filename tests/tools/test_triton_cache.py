"""The carried Triton cache: it follows the stage's lists, and is found wherever its folder lies."""

from __future__ import annotations

import json

import pytest

from tools import triton_cache


def test_the_index_is_relative_and_only_machine_code_is_kept(tmp_path):
    cache = tmp_path / "triton-cache"
    entry = cache / "KEY"
    entry.mkdir(parents=True)
    names = ("k.cubin", "k.json", "k.ptx", "k.source")
    for name in names:
        (entry / name).write_text(name)
    index = entry / "__grp__k.json"
    index.write_text(json.dumps({"child_paths": {name: f"/elsewhere/KEY/{name}" for name in names}}))
    (cache / "OTHER").mkdir()
    for _ in range(2):  # what is settled stays as it is
        assert triton_cache.settle(cache) == 1
        kept = {"k.cubin": "triton-cache/KEY/k.cubin", "k.json": "triton-cache/KEY/k.json"}
        assert json.loads(index.read_text()) == {"child_paths": kept}
        assert {path.name for path in entry.iterdir()} == {"k.cubin", "k.json", "__grp__k.json"}


def test_the_cache_compiles_every_kernel_of_the_stage():
    from benchmarks.gpu_day import triton as stage

    work = triton_cache.work()
    assert len(work) == len(stage.KERNELS) * len(stage.MATHS) + len(stage.TIMED)
    assert {arguments[0] for run, arguments in work if run is stage.check} == set(stage.KERNELS)
    assert [arguments[0] for run, arguments in work if run is stage.warm] == list(stage.TIMED)


def test_the_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET is set"):
        triton_cache.main()
