"""The character model: training steps and sampling."""

from __future__ import annotations

import pytest


@pytest.mark.groups("characters")
def test_training_step(speed, case):
    speed(case)


@pytest.mark.groups("sampling", "sampling-64")
def test_sampling(speed, case):
    speed(case)
