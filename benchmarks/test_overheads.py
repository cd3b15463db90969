"""Costs of fastlstm outside its calls."""

from __future__ import annotations

from benchmarks import overheads


def test_import(benchmark, keep):
    benchmark.pedantic(lambda: keep(overheads.import_rows()), rounds=1)


def test_the_size_of_the_wheel(benchmark, keep):
    benchmark.pedantic(lambda: keep(overheads.wheel_rows()), rounds=1)


def test_the_operation_after_a_call(benchmark, keep):
    benchmark.pedantic(lambda: keep(overheads.after_rows()), rounds=1)


def test_reading_a_corpus(benchmark, keep):
    benchmark.pedantic(lambda: keep(overheads.corpus_rows()), rounds=1)
