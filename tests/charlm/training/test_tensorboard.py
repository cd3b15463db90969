"""Event files of a run."""

from __future__ import annotations

import pytest

from fastlstm.charlm import train
from tests.charlm.babbling import SMALL


def test_tensorboard_gets_the_losses(text, tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    from fastlstm.charlm.training.tensorboard import TensorBoard

    result = train(str(text), tmp_path / "run", reporter=TensorBoard(), **SMALL)
    events = event.EventAccumulator(str(result.folder)).Reload()
    assert events.Scalars("val/nats")[-1].value == pytest.approx(result.nats)
    assert len(events.Scalars("train/nats")) > 10
