"""Benchmarks, and the one table of cases that they share with the tests."""
