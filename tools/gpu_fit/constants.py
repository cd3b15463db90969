"""Writes the constants where the cost model has them: csrc/cuda/cost_constants.h."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

CostConstants = tuple[tuple[str, float], ...]  # (name, value); those that are not named keep what is built in
HEADER = Path(__file__).parents[2] / "csrc" / "cuda" / "cost_constants.h"


def rounded(value: float) -> float:
    """Three digits, as they are written."""
    return float(f"{value:.3g}")


def written(text: str, values: Mapping[str, float], source: str) -> str:
    """The header with other values, and where they come from; raises ValueError where it lacks one of them."""
    for name, value in values.items():
        text, times = re.subn(rf"(  X\({name}, )[^,]+,", rf"\g<1>{rounded(value):.10g},", text)
        if times != 1:
            raise ValueError(f"{HEADER.name} has {times} lines X({name}, …), expected one")
    text, times = re.subn(r"^// From: .*$", f"// From: {source}", text, flags=re.M)
    if times != 1:
        raise ValueError(f"{HEADER.name} has {times} lines // From: …, expected one")
    return text
