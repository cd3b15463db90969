"""The definition as a backend: any device and type, one step at a time. Last in every order of preference."""

from __future__ import annotations

from fastlstm.backends.common import Spec
from fastlstm.reference import backward, forward

__all__ = ["NAME", "backward", "forward", "plan", "why_not"]

NAME = "reference"


def why_not(spec: Spec) -> str | None:
    """It can always run."""
    return None


def plan(spec: Spec) -> str:
    return f"reference: plain torch, {spec.T} steps one at a time; it runs everything and is fast nowhere"
