"""Layers: forward, training step, packed, projected, bidirectional, one step, stream; scaling; GPU."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.groups("training", "training-b1")
def test_training_step(speed, case):
    speed(case)


@pytest.mark.groups("forward", "forward-b1")
def test_forward(speed, case):
    speed(case)


@pytest.mark.groups("packed", "packed-bidirectional", "bidirectional", "projection")
def test_kinds(speed, case):
    speed(case)


@pytest.mark.groups("one-step", "stream")
def test_one_step(speed, case):
    speed(case)


@pytest.mark.groups("scaling-T", "scaling-B", "scaling-H", "scaling-threads")
def test_scaling(speed, case):
    speed(case)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.groups("gpu-training", "gpu-forward")
def test_gpu(speed, case):
    speed(case)
