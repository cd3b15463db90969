"""The table of cases, for timings and tests; it lives in the package, where `fastlstm doctor --verify` needs it."""

from fastlstm.verify.cases import (
    FULL,
    HALF_TYPES,
    SHORT,
    SIZES,
    SPECIAL,
    Case,
    Grads,
    Inputs,
    cell_type,
    describe,
    make,
    make_grads,
)

__all__ = [
    "FULL",
    "HALF_TYPES",
    "SHORT",
    "SIZES",
    "SPECIAL",
    "Case",
    "Grads",
    "Inputs",
    "cell_type",
    "describe",
    "make",
    "make_grads",
]
