"""The tests: laid out as the package is; helpers are imported as `tests.…`."""
