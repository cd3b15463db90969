"""Options of a training run. The command line, the Python API and the checkpoint are all made from `TrainConfig`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .data.splits import SPLITS
from .data.unknown import POLICIES
from .errors import CharLMError, brief, plain_number


def option(default: Any, panel: str, text: str, *aliases: str) -> Any:
    """A dataclass field with its help for the command line. aliases: further flags (char-rnn's, torch-rnn's)."""
    return field(default=default, metadata={"panel": panel, "help": text, "aliases": aliases})


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run. The defaults are char-rnn's."""

    encoding: str = option("utf-8", "Data", "encoding of the text")
    bytes: bool = option(False, "Data", "learn raw bytes rather than characters")
    lines: bool = option(False, "Data", "one item a line")
    split: str = option(
        "",
        "Data",
        "streams (char-rnn's), contiguous (the end of the text) or lines (whole lines); by default as suits the corpus",
    )
    val_frac: float = option(0.05, "Data", "share of the text that validates")
    unknown: str = option(
        "error",
        "Data",
        "characters that the model of --init-from never saw: error, skip (leave them out) or add (learn them)",
    )
    hidden_size: int = option(128, "Model", "hidden units of each layer", "--rnn-size")
    num_layers: int = option(2, "Model", "LSTM layers")
    embedding_dim: int = option(0, "Model", "size of the character embedding; 0 for one-hot", "--wordvec-size")
    dropout: float = option(0.0, "Model", "dropout after every layer, the last one too")
    locked_dropout: float = option(0.0, "Model", "dropout after every layer with one mask for all steps of a batch")
    weight_drop: float = option(0.0, "Model", "drop recurrent weights (DropConnect), one mask a batch")
    init_scale: float = option(0.08, "Model", "weights start uniform in ±this; 0 for the layers' own draws")
    optimizer: str = option("rmsprop", "Optimisation", "rmsprop, adam or adamw")
    learning_rate: float = option(2e-3, "Optimisation", "learning rate at the start")
    decay_rate: float = option(0.95, "Optimisation", "RMSProp's smoothing")
    weight_decay: float = option(0.0, "Optimisation", "AdamW's decay of the weight matrices")
    schedule: str = option("step", "Optimisation", "learning rate: step, cosine or constant")
    learning_rate_decay: float = option(0.97, "Optimisation", "step: factor", "--lr-decay-factor")
    learning_rate_decay_after: int = option(10, "Optimisation", "step: epochs before the first decay")
    learning_rate_decay_every: int = option(1, "Optimisation", "step: epochs between decays", "--lr-decay-every")
    warmup: int = option(0, "Optimisation", "iterations of linear warm-up")
    grad_clip: float = option(5.0, "Optimisation", "clip each gradient value at ±this; 0 for never")
    clip_norm: float = option(0.0, "Optimisation", "clip the norm of the whole gradient; 0 for never")
    seq_length: int = option(50, "Run", "characters of back-propagation through time")
    batch_size: int = option(50, "Run", "streams side by side")
    max_epochs: int = option(50, "Run", "passes over the training text")
    max_time: float = option(0.0, "Run", "seconds of training at most, the schedule fitted to them; 0 for no limit")
    eval_every: int = option(0, "Run", "iterations between evaluations; 0 for once an epoch", "--eval-val-every")
    patience: int = option(0, "Run", "stop after this many evaluations without a better one; 0 for never")
    checkpoint_every: int = option(0, "Run", "iterations between saves of last.safetensors; 0 for at evaluations")
    sample_every: int = option(0, "Run", "iterations between kept samples; 0 for none")
    sample_length: int = option(400, "Run", "characters of a kept sample")
    log_every: int = option(10, "Run", "iterations between lines of log.jsonl", "--print-every")
    seed: int = option(123, "Run", "seed of weights, dropout, shuffling and kept samples")

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, plain_number(getattr(self, item.name)))
            value, kinds = getattr(self, item.name), _KINDS[item.type]
            if type(value) not in kinds:
                flag = "--" + item.name.replace("_", "-")
                raise CharLMError(f"{flag} is {brief(value)}, expected {kinds[0].__name__}")
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise CharLMError(f"--{name.replace('_', '-')} is {value}, expected {_range(low, high)}")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise CharLMError(f"--{name} is {brief(value)}, expected {', '.join(filter(None, choices))}")

    def settle(self, lines_by_default: bool) -> TrainConfig:
        """A copy with `lines` and `split` set. lines_by_default: the corpus has one item a line."""
        lines = self.lines or lines_by_default or self.split == "lines"
        if lines and self.bytes:
            raise CharLMError("--bytes and --lines do not go together: lines are text")
        return replace(self, lines=lines, split=self.split or ("lines" if lines else "streams"))


_KINDS = {"str": (str,), "bool": (bool,), "int": (int,), "float": (float, int)}
_CHOICES = {
    "split": ("", *SPLITS),
    "unknown": POLICIES,
    "optimizer": ("rmsprop", "adam", "adamw"),
    "schedule": ("step", "cosine", "constant"),
}
_HUGE = float("inf")
_BOUNDS = [
    ("val_frac", 1e-6, 0.9),
    ("hidden_size", 1, 1 << 16),
    ("num_layers", 1, 1000),
    ("embedding_dim", 0, 1 << 20),
    ("dropout", 0.0, 0.99),
    ("locked_dropout", 0.0, 0.99),
    ("weight_drop", 0.0, 0.99),
    ("init_scale", 0.0, 10.0),
    ("learning_rate", 0.0, 100.0),
    ("decay_rate", 0.0, 1.0),
    ("weight_decay", 0.0, _HUGE),
    ("learning_rate_decay", 0.0, 1.0),
    ("learning_rate_decay_after", 0, _HUGE),
    ("learning_rate_decay_every", 1, _HUGE),
    ("warmup", 0, _HUGE),
    ("grad_clip", 0.0, _HUGE),
    ("clip_norm", 0.0, _HUGE),
    ("seq_length", 1, 1 << 24),
    ("batch_size", 1, 1 << 24),
    ("max_epochs", 1, _HUGE),
    ("max_time", 0.0, _HUGE),
    ("eval_every", 0, _HUGE),
    ("patience", 0, _HUGE),
    ("checkpoint_every", 0, _HUGE),
    ("sample_every", 0, _HUGE),
    ("sample_length", 1, 1 << 24),
    ("log_every", 1, _HUGE),
    ("seed", 0, (1 << 63) - 1),
]


def _range(low: float, high: float) -> str:
    return f"at least {_plain(low)}" if high == _HUGE else f"{_plain(low)} to {_plain(high)}"


def _plain(number: float) -> str:
    """A number without an exponent: 16,777,216 and 0.000001."""
    return f"{number:,}" if isinstance(number, int) else f"{number:,.6f}".rstrip("0").rstrip(".")


PRESETS: dict[str, dict[str, Any]] = {
    "char-rnn": {},
    "torch-rnn": {
        "embedding_dim": 64,
        "optimizer": "adam",
        "learning_rate_decay": 0.5,
        "learning_rate_decay_after": 5,
        "learning_rate_decay_every": 5,
        "init_scale": 0.0,
        "split": "contiguous",
        "val_frac": 0.1,
    },
    "names": {
        "lines": True,
        "dropout": 0.3,
        "optimizer": "adamw",
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "warmup": 50,
        "grad_clip": 0.0,
        "clip_norm": 1.0,
        "seq_length": 32,
        "max_epochs": 250,  # patience ends it at about 130
        "patience": 25,
    },
}

# Options that a resumed run may change: its length and what it writes, not what it computes.
FREE_ON_RESUME = {"max_epochs", "max_time", "patience", "checkpoint_every"}


def make(preset: str = "char-rnn", **options: Any) -> TrainConfig:
    """A configuration from a preset and the options that override it. Raises CharLMError for unknown or bad ones."""
    if preset not in PRESETS:
        raise CharLMError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    unknown = set(options) - {item.name for item in fields(TrainConfig)}
    if unknown:
        raise CharLMError(f"there is no training option {brief(sorted(unknown)[0])}")
    return TrainConfig(**{**PRESETS[preset], **options})


def from_json(record: dict[str, Any]) -> TrainConfig:
    """The configuration of a checkpoint."""
    return make(**record)


def to_json(config: TrainConfig) -> dict[str, Any]:
    return asdict(config)


def check_resumed(saved: TrainConfig, options: dict[str, Any]) -> TrainConfig:
    """The configuration of a resumed run.

    Args:
        saved: of the run
        options: of the call that resumes it; only those of FREE_ON_RESUME may differ

    Raises:
        CharLMError: an option that may not change is different.
    """
    for name, value in options.items():
        was = getattr(saved, name)
        fixed = name not in FREE_ON_RESUME or (name in ("max_epochs", "max_time") and saved.schedule == "cosine")
        if fixed and value != was:
            flag = "--" + name.replace("_", "-")
            raise CharLMError(
                f"the run was started with {flag} {was} and cannot be resumed with {flag} {value}: leave it out"
            )
    return replace(saved, **options)
