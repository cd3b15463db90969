"""The training loop. Its counters are in `state.Progress`; resume.py saves them with the tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.corpus import Corpus
from ..data.splits import divide
from ..errors import CharLMError
from ..evaluate import total_nats
from ..model import CharModel, initialise
from ..sampling.sample import Sampling, sample_texts
from .distributed import Ranks
from .jsonl import JsonLines
from .optim import FlatParameters, Optimiser, learning_rate
from .progress import Reporter
from .resume import save_model, save_run
from .state import Progress

TIME_IS_UP = "time is up"
SAVE_SECONDS = 5.0  # least time between saves of last.safetensors at evaluations, without --checkpoint-every


class Trainer:
    """Trains a model; one instance in each process of a run.

    Args:
        config: options of the run
        corpus: to train on
        folder: for checkpoints and logs
        ranks: the processes of the run
        reporter: receives events
        start: initial weights (fine-tuning); None for random ones

    Raises:
        CharLMError: the batch cannot be split over the processes, or the corpus is too short.
    """

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        folder: Path,
        ranks: Ranks,
        reporter: Reporter,
        start: dict[str, Tensor] | None = None,
    ):
        self.config, self.corpus, self.folder, self.ranks, self.reporter = config, corpus, folder, ranks, reporter
        if config.batch_size % ranks.size:
            raise CharLMError(f"--batch-size {config.batch_size} cannot be split evenly over {ranks.size} processes")
        data = divide(corpus, config.split, config.val_frac, config.batch_size, config.seq_length, config.seed)
        self.train, self.val = data.train.share(ranks.rank, ranks.size), data.val.share(ranks.rank, ranks.size)
        self.total_iterations = config.max_epochs * self.train.batches
        self.eval_every = config.eval_every or self.train.batches
        self.model = _initial_model(config, len(corpus.vocab), start).to(ranks.device)
        torch.manual_seed(config.seed + ranks.rank)  # each process draws its own dropout masks
        self.flat = FlatParameters(self.model)
        self.optimiser = Optimiser(self.flat, config)
        self.net = ranks.wrap(self.model)
        self.state = self.model.zero_state(config.batch_size // ranks.size)
        self.loss_sum = torch.zeros((), device=ranks.device)
        self.progress = Progress()
        self.stop_requested = False  # set by a signal handler; the run is saved and stops after the current iteration
        self.stop_reason = ""
        self._saved_at = self._clock = time.monotonic()
        self._last_logged = (0, 0.0)  # iteration and seconds at the last line of the log
        self._speed = 0  # characters a second, as of then
        self._changed: list[Path] = []

    def run(self) -> str:
        """Train until the run ends or a signal stops it; returns the reason."""
        progress, config = self.progress, self.config
        if self.ranks.is_first:
            self.log = JsonLines(self.folder / "log.jsonl", progress.log_size)
            self.samples = JsonLines(self.folder / "samples.jsonl", progress.samples_size)
        self.reporter.begin(self)
        self.model.train()
        self._clock, self._last_logged = time.monotonic(), (progress.iteration, progress.seconds)
        self._update_stop_reason(reported=False)
        while not self.stop_reason:
            self.step()
            i = progress.iteration
            evaluate = i % self.eval_every == 0 or i >= self.total_iterations
            report = evaluate or i == 1 or i % config.log_every == 0
            if report:
                self._report(evaluate)
            if config.sample_every and i % config.sample_every == 0:
                with self._untimed():
                    self._log_sample()
            self._update_stop_reason(report)
            if self.stop_reason == TIME_IS_UP and not evaluate:
                self._report(evaluate=True)
            self._save_if_due(evaluate)
        self.reporter.end(self)
        return self.stop_reason

    def step(self) -> None:
        """One iteration: forward, backward, clip, update. It does not synchronise with the device."""
        progress = self.progress
        epoch, k = divmod(progress.iteration, self.train.batches)
        x, y = (torch.from_numpy(ids).to(self.ranks.device, non_blocking=True) for ids in self.train.batch(epoch, k))
        scores, state = self.net(x, self.state, self._item_resets(x))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
        loss.backward()
        self.optimiser.step(learning_rate(self.config, progress.iteration, epoch, self.fraction_done))
        self.state = (state[0].detach(), state[1].detach())
        self.loss_sum += loss.detach()
        progress.loss_count += 1
        progress.iteration += 1

    def _item_resets(self, x: Tensor) -> Tensor | None:
        """Steps before which the state is set to zero, (T, B) bool; None unless the corpus has one item a line.

        Half of the items, chosen at random, start from a zero state, because items are sampled and scored from a zero
        state one by one; without resets sampled names began with lower-case letters. The other half continue the state,
        so that the model also reads a list as one text.
        """
        if not self.config.lines:
            return None
        newline = self.corpus.vocab.symbols.index("\n")
        return (x == newline) & (torch.rand(x.shape, device=x.device) < 0.5)

    @property
    def epoch(self) -> float:
        return self.progress.iteration / self.train.batches

    @property
    def fraction_done(self) -> float:
        """Completed fraction of the run: of the iterations or, with max_time, of the seconds (as last reported)."""
        share = self.progress.iteration / self.total_iterations
        return max(share, self.progress.seconds / self.config.max_time) if self.config.max_time else share

    def _update_stop_reason(self, reported: bool) -> None:
        """Set `stop_reason` if the run ends here. With several processes a signal counts once they have exchanged it."""
        progress, config = self.progress, self.config
        if self.stop_requested and (reported or self.ranks.size == 1):
            self.stop_reason = "interrupted"
        elif progress.iteration >= self.total_iterations:
            self.stop_reason = "all epochs done"
        elif config.max_time and progress.seconds >= config.max_time:
            self.stop_reason = TIME_IS_UP
        elif config.patience and progress.stale >= config.patience:
            self.stop_reason = f"no better evaluation in {config.patience}"

    def _seconds_since_last_call(self) -> float:
        """Seconds of training since the last call."""
        now = time.monotonic()
        passed, self._clock = now - self._clock, now
        return passed

    @contextmanager
    def _untimed(self) -> Iterator[None]:
        """Time inside this context is not counted as training."""
        started = time.monotonic()
        yield
        self._clock += time.monotonic() - started

    def _report(self, evaluate: bool) -> None:
        """Add a line to the log, with the validation loss if `evaluate`, and check the training loss."""
        progress = self.progress
        loss = float(self.loss_sum) / progress.loss_count if progress.loss_count else progress.train_nats
        shared = torch.tensor([loss, self._seconds_since_last_call(), float(self.stop_requested)], dtype=torch.float64)
        loss, passed, signals = self.ranks.mean(shared.to(self.ranks.device)).tolist()
        progress.seconds += passed
        self.stop_requested = signals > 0
        self.loss_sum.zero_()
        progress.loss_count, progress.train_nats = 0, loss
        self._check_loss(loss)
        since, seconds = progress.iteration - self._last_logged[0], progress.seconds - self._last_logged[1]
        self._last_logged = (progress.iteration, progress.seconds)
        row: dict[str, Any] = {"iteration": progress.iteration, "epoch": round(self.epoch, 4), "train_nats": loss}
        if evaluate:
            with self._untimed():
                row["val_nats"] = self._evaluate()
        if since:
            self._speed = round(since * self.config.batch_size * self.config.seq_length / max(seconds, 1e-9))
        row["chars_per_s"] = self._speed
        if self.ranks.is_first:
            self.log.add(row)
        self.reporter.row(self, row)

    def _check_loss(self, loss: float) -> None:
        """Raises CharLMError if the loss is not finite or over three times the first one."""
        progress = self.progress
        if progress.first_loss is None:
            progress.first_loss = loss
        if not math.isfinite(loss) or loss > 3 * progress.first_loss:
            kept = f"; {self.folder / 'best.safetensors'} holds the best model so far" if progress.best_nats else ""
            raise CharLMError(
                f"stopped at iteration {progress.iteration:,}: the loss is {loss:.4g} nats, it began at "
                f"{progress.first_loss:.4g}; try a smaller --learning-rate or --grad-clip{kept}"
            )

    def _evaluate(self) -> float:
        """Validation loss in nats a symbol; saves the model if it is the best so far."""
        progress = self.progress
        sums = torch.tensor(total_nats(self.model, self.val), dtype=torch.float64, device=self.ranks.device)
        nats, scored = self.ranks.sum(sums).tolist()
        progress.val_nats = nats / scored
        if progress.best_nats is None or progress.val_nats < progress.best_nats:
            progress.best_nats, progress.stale = progress.val_nats, 0
            if self.ranks.is_first:
                save_model(self, self.folder / "best.safetensors")
        else:
            progress.stale += 1
        self._note_changed_files()
        return progress.val_nats

    def _note_changed_files(self) -> None:
        if self.ranks.is_first and (changed := self.corpus.changed()) and changed != self._changed:
            self._changed = changed
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self.reporter.note(
                f"{changed[0]}{more} changed on disk since the run began; it goes on with the text as it was read, "
                "but cannot be resumed with the changed one"
            )

    def _log_sample(self) -> None:
        if self.ranks.is_first:
            sampling = Sampling(length=self.config.sample_length, seed=self.config.seed)
            (text,) = sample_texts(self.model, self.corpus.vocab, sampling)
            self.samples.add({"iteration": self.progress.iteration, "epoch": round(self.epoch, 4), "text": text})
            self.reporter.sampled(self, text)

    def _save_if_due(self, evaluate: bool) -> None:
        every = self.config.checkpoint_every
        due = self.progress.iteration % every == 0 if every else evaluate and self._save_interval_over()
        if due or self.stop_reason:
            with self._untimed():
                save_run(self, self.folder / "last.safetensors")
            self._saved_at = time.monotonic()

    def _save_interval_over(self) -> bool:
        """True if the last save is more than SAVE_SECONDS ago; the first process decides for all."""
        rested = torch.tensor(float(self.ranks.is_first and time.monotonic() - self._saved_at > SAVE_SECONDS))
        return bool(self.ranks.sum(rested.to(self.ranks.device)) > 0)


def _initial_model(config: TrainConfig, symbols: int, start: dict[str, Tensor] | None) -> CharModel:
    torch.manual_seed(config.seed)
    sizes = (symbols, config.hidden_size, config.num_layers, config.embedding_dim)
    model = CharModel(*sizes, config.dropout, config.locked_dropout, config.weight_drop)
    initialise(model, config.init_scale)
    if start is not None:
        model.load_state_dict(start)
    return model
