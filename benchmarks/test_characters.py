"""The character model: training steps and sampling."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.groups("characters")
def test_training_step(speed, case):
    speed(case)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.groups("gpu-characters")
def test_training_step_on_a_gpu(speed, case):
    speed(case)


@pytest.mark.groups("sampling", "sampling-64")
def test_sampling(speed, case):
    speed(case)
