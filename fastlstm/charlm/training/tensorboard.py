"""A reporter that writes loss curves and samples for TensorBoard (`pip install tensorboard`)."""

from __future__ import annotations

from typing import Any

from ..errors import CharLMError
from .progress import Reporter
from .state import TrainingRun


class TensorBoard(Reporter):
    """Writes event files to the folder of the run. Raises CharLMError without the package tensorboard."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise CharLMError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
        self._make = SummaryWriter

    def begin(self, run: TrainingRun) -> None:
        try:
            self.writer = self._make(str(run.folder), purge_step=run.progress.iteration + 1)
        except OSError as error:
            raise CharLMError(
                f"cannot write TensorBoard files into {run.folder}: {error.strerror or error}; make room or leave "
                "--tensorboard out"
            ) from error

    def row(self, run: TrainingRun, row: dict[str, Any]) -> None:
        for name in ("train_nats", "val_nats", "chars_per_s"):
            if name in row:
                self.writer.add_scalar(name.replace("_nats", "/nats"), row[name], row["iteration"])

    def sampled(self, run: TrainingRun, text: str) -> None:
        self.writer.add_text("sample", f"<pre>{_escape(text)}</pre>", run.progress.iteration)

    def end(self, run: TrainingRun) -> None:
        self.writer.close()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
