"""The one rule of accuracy, for tests; it lives in the package, where `fastlstm doctor --verify` needs it."""

from fastlstm.verify.judge import (
    LEAVES,
    OP_OUTPUTS,
    check,
    check_all,
    check_backend,
    draws,
    error,
    expected,
    limit,
    yardstick,
)

__all__ = [
    "LEAVES",
    "OP_OUTPUTS",
    "check",
    "check_all",
    "check_backend",
    "draws",
    "error",
    "expected",
    "limit",
    "yardstick",
]
