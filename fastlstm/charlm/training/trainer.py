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
from ..sampling.sample import Drawing, draw
from .distributed import Ranks
from .jsonl import JsonLines
from .optim import Flat, Optimiser, learning_rate
from .progress import Reporter
from .resume import save_model, save_run
from .state import Progress

TIME_UP = "time is up"
SAVE_SECONDS = 5.0  # evaluations save last.safetensors no more often than this, unless --checkpoint-every says when


class Trainer:
    """One run, in one of its processes.

    folder: where checkpoints and records go; start: weights to begin with (fine-tuning), None for fresh ones.
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
        self.total = config.max_epochs * self.train.batches
        self.eval_every = config.eval_every or self.train.batches
        self.model = _fresh_model(config, len(corpus.vocab), start).to(ranks.device)
        torch.manual_seed(config.seed + ranks.rank)  # each process draws its own dropout masks
        self.flat = Flat(self.model)
        self.optimiser = Optimiser(self.flat, config)
        self.net = ranks.wrap(self.model)
        self.state = self.model.zero_state(config.batch_size // ranks.size)
        self.loss_sum = torch.zeros((), device=ranks.device)
        self.progress = Progress()
        self.signalled = False  # a handler sets this; the run stops, saved, after the iteration under way
        self.stopping = ""
        self._saved_at = self._clock = time.monotonic()
        self._mark = (0, 0.0)  # iteration and seconds at the last line of the log
        self._speed = 0  # characters a second, as of then
        self._changed: list[Path] = []

    def run(self) -> str:
        """Train to the end or to an interrupt; returns why it stopped."""
        progress, config = self.progress, self.config
        if self.ranks.first:
            self.log = JsonLines(self.folder / "log.jsonl", progress.log_size)
            self.samples = JsonLines(self.folder / "samples.jsonl", progress.samples_size)
        self.reporter.begin(self)
        self.model.train()
        self._clock, self._mark = time.monotonic(), (progress.iteration, progress.seconds)
        self._decide(reported=False)
        while not self.stopping:
            self.step()
            i = progress.iteration
            evaluate = i % self.eval_every == 0 or i >= self.total
            report = evaluate or i == 1 or i % config.log_every == 0
            if report:
                self._report(evaluate)
            if config.sample_every and i % config.sample_every == 0:
                with self._off_the_clock():
                    self._keep_sample()
            self._decide(report)
            if self.stopping == TIME_UP and not evaluate:
                self._report(evaluate=True)
            self._save_if_due(evaluate)
        self.reporter.end(self)
        return self.stopping

    def step(self) -> None:
        """One iteration: forward, backward, clip, update. Nothing here waits for the device."""
        progress = self.progress
        epoch, k = divmod(progress.iteration, self.train.batches)
        x, y = (torch.from_numpy(ids).to(self.ranks.device, non_blocking=True) for ids in self.train.batch(epoch, k))
        scores, state = self.net(x, self.state, self._fresh_starts(x))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
        loss.backward()
        self.optimiser.step(learning_rate(self.config, progress.iteration, epoch, self.done))
        self.state = (state[0].detach(), state[1].detach())
        self.loss_sum += loss.detach()
        progress.loss_count += 1
        progress.iteration += 1

    def _fresh_starts(self, x: Tensor) -> Tensor | None:
        """Where the state begins anew, (T, B) bool: before half of the items of a list, drawn at random.

        A list is sampled and scored item by item from a zero state, which training would otherwise never show again
        after its first step: names then began with small letters. The other half keeps lists readable as one text.
        """
        if not self.config.lines:
            return None
        newline = self.corpus.vocab.symbols.index("\n")
        return (x == newline) & (torch.rand(x.shape, device=x.device) < 0.5)

    @property
    def epoch(self) -> float:
        return self.progress.iteration / self.train.batches

    @property
    def done(self) -> float:
        """Share of the run behind it: of the iterations or, with max_time, of the seconds (as last reported)."""
        share = self.progress.iteration / self.total
        return max(share, self.progress.seconds / self.config.max_time) if self.config.max_time else share

    def _decide(self, reported: bool) -> None:
        """Sets why the run stops here, if it does. A signal counts where the processes have just exchanged it."""
        progress, config = self.progress, self.config
        if self.signalled and (reported or self.ranks.size == 1):
            self.stopping = "interrupted"
        elif progress.iteration >= self.total:
            self.stopping = "all epochs done"
        elif config.max_time and progress.seconds >= config.max_time:
            self.stopping = TIME_UP
        elif config.patience and progress.stale >= config.patience:
            self.stopping = f"no better evaluation in {config.patience}"

    def _tick(self) -> float:
        """Seconds of training since the last tick."""
        now = time.monotonic()
        passed, self._clock = now - self._clock, now
        return passed

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """What is done inside is no training time."""
        started = time.monotonic()
        yield
        self._clock += time.monotonic() - started

    def _report(self, evaluate: bool) -> None:
        """A line of the log, evaluated or not, and a look at whether the loss still makes sense."""
        progress = self.progress
        loss = float(self.loss_sum) / progress.loss_count if progress.loss_count else progress.train_nats
        shared = torch.tensor([loss, self._tick(), float(self.signalled)], dtype=torch.float64)
        loss, passed, signals = self.ranks.mean(shared.to(self.ranks.device)).tolist()
        progress.seconds += passed
        self.signalled = signals > 0
        self.loss_sum.zero_()
        progress.loss_count, progress.train_nats = 0, loss
        self._check_loss(loss)
        since, seconds = progress.iteration - self._mark[0], progress.seconds - self._mark[1]
        self._mark = (progress.iteration, progress.seconds)
        row: dict[str, Any] = {"iteration": progress.iteration, "epoch": round(self.epoch, 4), "train_nats": loss}
        if evaluate:
            with self._off_the_clock():
                row["val_nats"] = self._evaluate()
        if since:
            self._speed = round(since * self.config.batch_size * self.config.seq_length / max(seconds, 1e-9))
        row["chars_per_s"] = self._speed
        if self.ranks.first:
            self.log.add(row)
        self.reporter.row(self, row)

    def _check_loss(self, loss: float) -> None:
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
        """Validation loss; the model is kept if none was better."""
        progress = self.progress
        sums = torch.tensor(total_nats(self.model, self.val), dtype=torch.float64, device=self.ranks.device)
        nats, scored = self.ranks.sum(sums).tolist()
        progress.val_nats = nats / scored
        if progress.best_nats is None or progress.val_nats < progress.best_nats:
            progress.best_nats, progress.stale = progress.val_nats, 0
            if self.ranks.first:
                save_model(self, self.folder / "best.safetensors")
        else:
            progress.stale += 1
        self._notice_changes()
        return progress.val_nats

    def _notice_changes(self) -> None:
        if self.ranks.first and (changed := self.corpus.changed()) and changed != self._changed:
            self._changed = changed
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self.reporter.note(
                f"{changed[0]}{more} changed on disk since the run began; it goes on with the text as it was read, "
                "but cannot be resumed with the changed one"
            )

    def _keep_sample(self) -> None:
        if self.ranks.first:
            drawing = Drawing(length=self.config.sample_length, seed=self.config.seed)
            (text,) = draw(self.model, self.corpus.vocab, drawing)
            self.samples.add({"iteration": self.progress.iteration, "epoch": round(self.epoch, 4), "text": text})
            self.reporter.sampled(self, text)

    def _save_if_due(self, evaluate: bool) -> None:
        every = self.config.checkpoint_every
        due = self.progress.iteration % every == 0 if every else evaluate and self._rested()
        if due or self.stopping:
            with self._off_the_clock():
                save_run(self, self.folder / "last.safetensors")
            self._saved_at = time.monotonic()

    def _rested(self) -> bool:
        """Whether the last save is long enough ago; the first process decides for all."""
        rested = torch.tensor(float(self.ranks.first and time.monotonic() - self._saved_at > SAVE_SECONDS))
        return bool(self.ranks.sum(rested.to(self.ranks.device)) > 0)


def _fresh_model(config: TrainConfig, symbols: int, start: dict[str, Tensor] | None) -> CharModel:
    torch.manual_seed(config.seed)
    sizes = (symbols, config.hidden_size, config.num_layers, config.embedding_dim)
    model = CharModel(*sizes, config.dropout, config.locked_dropout, config.weight_drop)
    initialise(model, config.init_scale)
    if start is not None:
        model.load_state_dict(start)
    return model
