"""Compares two checkouts of this package on the same machine: `python -m benchmarks.before_after BEFORE_TREE`."""
