"""Saves and restores a run: weights, optimiser, random generators, hidden state, counters, length of its logs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..checkpoint import Checkpoint
from ..config import to_json
from ..data.corpus import Corpus
from ..data.recorded import corpus_record
from ..errors import CharLMError
from .progress import Reporter
from .state import Progress, TrainingRun


def _model(run: TrainingRun, metrics: dict[str, Any]) -> Checkpoint:
    corpus, weights = run.corpus, dict(run.model.state_dict())
    return Checkpoint(to_json(run.config), corpus.vocab, corpus_record(corpus, run.folder), metrics, weights)


def save_model(run: TrainingRun, path: Path) -> None:
    """Write the model without the state of its run. The file has no time stamp: equal weights give equal bytes."""
    progress = run.progress
    metrics = {
        "iteration": progress.iteration,
        "epoch": round(run.epoch, 4),
        "train_nats": progress.train_nats,
        "val_nats": progress.val_nats,
    }
    checkpoint.write(path, _model(run, metrics))


def save_run(run: TrainingRun, path: Path) -> None:
    """Write all state of a run. All processes must call it; the first one writes."""
    ranks, progress = run.ranks, run.progress
    h, c = run.state
    train = {
        "h": ranks.gather(h, 1),
        "c": ranks.gather(c, 1),
        "loss_sum": ranks.gather(run.loss_sum.reshape(1), 0),
        "generator": ranks.gather(torch.get_rng_state().to(ranks.device)[None], 0),
        **{f"optimiser.{name}": value for name, value in run.optimiser.state().items()},
    }
    if ranks.device.type == "cuda":
        train["generator.cuda"] = ranks.gather(torch.cuda.get_rng_state().to(ranks.device)[None], 0)
    if not ranks.is_first:
        return
    for record in (run.log, run.samples):
        record.sync()
    progress.log_size, progress.samples_size = run.log.size, run.samples.size
    resumable = {"progress": asdict(progress), "processes": ranks.size}
    metrics = {name: getattr(progress, name) for name in ("iteration", "train_nats", "val_nats", "best_nats")}
    metrics["epoch"] = round(run.epoch, 4)
    checkpoint.write(path, replace(_model(run, metrics), train=train, run=resumable))


def restore(run: TrainingRun, saved: Checkpoint, reporter: Reporter) -> None:
    """Set a new run to the state of a saved one. reporter: is told if the number of processes differs."""
    ranks, train = run.ranks, saved.train
    run.progress = Progress.from_json(saved.run["progress"])
    run.model.load_state_dict(saved.weights)  # copies into the flat vector's views
    prefix = "optimiser."
    run.optimiser.load({name[len(prefix) :]: value for name, value in train.items() if name.startswith(prefix)})
    run.state = tuple(ranks.own_part(train[name], 1).to(ranks.device) for name in ("h", "c"))
    if saved.run["processes"] != ranks.size:
        reporter.note(
            f"the run was saved by {saved.run['processes']} processes and goes on with {ranks.size}: "
            "dropout draws other masks, so it is not the same to the bit"
        )
        run.loss_sum.copy_(train["loss_sum"].mean())
        return
    run.loss_sum.copy_(train["loss_sum"][ranks.rank])
    torch.set_rng_state(train["generator"][ranks.rank].clone())  # it reads from the start of the storage
    if "generator.cuda" in train and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(train["generator.cuda"][ranks.rank].clone())


def check_corpus(saved: Checkpoint, corpus: Corpus) -> None:
    """Raises CharLMError if a corpus is not the one that the saved run began with."""
    was = saved.corpus
    if (was["sha256"], was["symbols"]) != (corpus.sha256, len(corpus)) or saved.vocab != corpus.vocab:
        raise CharLMError(
            f"{corpus.name} is not the corpus this run began with ({was['name']}: {was['size']:,} bytes, sha256 "
            f"{was['sha256'][:12]}…): it has {corpus.size:,} bytes, sha256 {corpus.sha256[:12]}…; restore that text, "
            "or start anew in another --checkpoint-dir, with --init-from for these weights"
        )
