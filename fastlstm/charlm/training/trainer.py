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
from .progress import Guarded, Reporter
from .resume import save_model, save_run
from .state import Progress

TIME_IS_UP, INTERRUPTED = "time is up", "interrupted"
DIVERGED = 3.0  # a loss this many times the lowest one (or that of an even guess, if larger) ends the run
GROWN_SCALE = 0.08  # of new weights in a model that grows by new symbols, without --init-scale
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
        self.config, self.corpus, self.folder, self.ranks = config, corpus, folder, ranks
        self.reporter = Guarded(reporter, self._stop_soon)
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
        self.loss_sum = torch.zeros((), dtype=torch.float32, device=ranks.device)
        self.progress = Progress()
        self.stop_requested = False  # set by a signal handler; the run is saved and stops after the current iteration
        self.stop_reason = ""
        self._saved_at = self._clock = time.monotonic()
        self._saved = False  # True once this process saved the run
        self._last_logged = (0, 0.0)  # iteration and seconds at the last line of the log
        self._speed = 0  # characters a second, as of then
        self._changed: list[Path] = []

    def _stop_soon(self) -> None:
        """Let the iteration finish, save the run and stop."""
        self.stop_requested = True

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
        if self.stop_reason == INTERRUPTED:
            save_run(self, self.folder / "last.safetensors")
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
        return (x == newline) & (torch.rand(x.shape, dtype=torch.float32, device=x.device) < 0.5)

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
            self.stop_reason = INTERRUPTED
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
        values = [loss, self._seconds_since_last_call(), float(self.stop_requested)]
        shared = torch.tensor(values, dtype=torch.float64, device="cpu")
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
        """Save the run and raise CharLMError if the loss is not finite or far above its lowest.

        Below that of an even guess, log V, no loss is far above another: a fine-tuning begins near zero and may rise.
        """
        progress = self.progress
        lowest = loss if progress.lowest_loss is None else progress.lowest_loss
        if math.isfinite(loss) and loss <= DIVERGED * max(lowest, math.log(len(self.corpus.vocab))):
            progress.lowest_loss = min(lowest, loss)
            return
        raise CharLMError(
            f"stopped at iteration {progress.iteration:,}: the loss is {loss:.4g} nats, its lowest was {lowest:.4g}; "
            f"try a smaller --learning-rate or --grad-clip; {self._kept()}"
        )

    def _kept(self) -> str:
        """Save a run that ends early, unless its weights are no numbers; says which models there are."""
        last, best = self.folder / "last.safetensors", self.folder / "best.safetensors"
        names = [f"{best} holds the best model"] if self.progress.best_nats is not None else []
        if bool(self.flat.vector.isfinite().all()):
            save_run(self, last)
            names.append(f"{last} holds the last one")
        elif self._saved:
            names.append(f"{last} holds the run as it was before")
        return " and ".join(names) or "nothing was worth keeping: the weights are no longer finite"

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
            self._saved_at, self._saved = time.monotonic(), True

    def _save_interval_over(self) -> bool:
        """True if the last save is more than SAVE_SECONDS ago; the first process decides for all."""
        is_time = self.ranks.is_first and time.monotonic() - self._saved_at > SAVE_SECONDS
        rested = torch.tensor(float(is_time), dtype=torch.float32, device="cpu")
        return bool(self.ranks.sum(rested.to(self.ranks.device)) > 0)


def _initial_model(config: TrainConfig, symbols: int, start: dict[str, Tensor] | None) -> CharModel:
    torch.manual_seed(config.seed)
    sizes = (symbols, config.hidden_size, config.num_layers, config.embedding_dim)
    model = CharModel(*sizes, config.dropout, config.locked_dropout, config.weight_drop)
    initialise(model, config.init_scale)
    if start is not None:
        _copy_weights(start, model, config.init_scale or GROWN_SCALE)
    return model


def _copy_weights(start: dict[str, Tensor], model: CharModel, scale: float) -> None:
    """Copy weights into a model that may have more symbols: what belongs to new ones is uniform in ±scale.

    Raises:
        CharLMError: they are weights of another model.
    """
    weights, grown = (
        model.state_dict(),
        (start["out.bias"].numel() if "out.bias" in start else 0, model.out.out_features),
    )
    wrong = next((name for name in {**weights, **start} if not _fits(start.get(name), weights.get(name), grown)), None)
    if wrong is not None:
        raise CharLMError(f"the checkpoint of --init-from is damaged: its weights {wrong} do not fit its configuration")
    for name, value in start.items():
        if value.shape != weights[name].shape:
            weights[name].uniform_(-scale, scale)
        weights[name][tuple(map(slice, value.shape))] = value  # the old symbols keep their ids


def _fits(old: Tensor | None, new: Tensor | None, grown: tuple[int, int]) -> bool:
    """True if two tensors have the same sizes, except where the number of symbols has grown from `grown[0]` to `[1]`."""
    if old is None or new is None or old.dim() != new.dim():
        return False
    return all(n == m or ((n, m) == grown and n < m) for n, m in zip(old.shape, new.shape, strict=True))
