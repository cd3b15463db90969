"""`fastlstm inspect`: what is in a checkpoint, as a card."""

from __future__ import annotations

import math
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .. import checkpoint, output
from .. import config as configs
from ..errors import shown
from .common import ModelName


def inspect_model(model: ModelName) -> None:
    """What is in a checkpoint: sizes, corpus, options, results."""
    path = checkpoint.locate(model)
    saved = checkpoint.read(path, with_train=True)
    console = output.console()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in describe(saved).items():
        grid.add_row(name, Text(value))
    console.print(Panel(grid, title=Text(path.name, "bold"), subtitle=f"{path.stat().st_size / 1e6:.2f} MB"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, side in (("tensor", "left"), ("shape", "right"), ("type", "left"), ("norm", "right")):
        table.add_column(name, justify=side)
    for name, value in saved.weights.items():
        dtype = str(value.dtype).removeprefix("torch.")
        table.add_row(Text(name), " × ".join(map(str, value.shape)), dtype, f"{float(value.double().norm()):.3f}")
    console.print(table)


def describe(saved: checkpoint.Checkpoint) -> dict[str, str]:
    """The facts of a checkpoint by name, as `inspect` shows them."""
    config, corpus, metrics = configs.to_json(configs.from_json(saved.config)), saved.corpus, saved.metrics
    weights = sum(value.numel() for value in saved.weights.values())
    unit = saved.vocab.unit + "s"
    encoding = f"embedding of {config['embedding_dim']}" if config["embedding_dim"] else "one-hot"
    rows = {
        "model": f"{config['num_layers']} × {config['hidden_size']} LSTM, {encoding} input, {weights:,} weights",
        "vocabulary": f"{len(saved.vocab)} {unit}"
        + ("" if saved.vocab.bytes else f": {shown(saved.vocab.symbols, 24)}"),
        "corpus": f"{corpus['name']}: {corpus['symbols']:,} {unit}, sha256 {corpus['sha256'][:16]}…",
        "trained": f"{metrics['iteration']:,} iterations, epoch {metrics['epoch']:g}",
        "loss": _losses(metrics),
        "options": _changed(config),
    }
    if saved.run:
        rows["run"] = f"can be resumed at iteration {saved.run['progress']['iteration']:,}"
    return rows


def _losses(metrics: dict[str, Any]) -> str:
    parts = []
    for name in ("train_nats", "val_nats", "best_nats"):
        if metrics.get(name) is not None:
            nats = metrics[name]
            parts.append(f"{name.removesuffix('_nats')} {nats:.4f} nats ({nats / math.log(2):.4f} bits)")
    return ", ".join(parts)


def _changed(config: dict[str, Any]) -> str:
    """Options that are not char-rnn's, as they would be given."""
    plain = configs.to_json(configs.TrainConfig())
    shape = ("hidden_size", "num_layers", "embedding_dim")
    changed = {name: value for name, value in config.items() if value != plain.get(name) and name not in shape}
    words = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in changed.items()]
    return " ".join(words) or "char-rnn's"
