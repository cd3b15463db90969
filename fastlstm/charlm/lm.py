"""A trained model, as a Python object: sample, evaluate, score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import checkpoint
from . import config as configs
from .checkpoint import Checkpoint
from .config import TrainConfig
from .data import splits
from .data.corpus import Corpus, Reading, load
from .data.splits import Data, Held
from .errors import CharLMError
from .evaluate import Evaluation, evaluate, nats_by_position, targets
from .model import CharModel
from .ngram import NGrams
from .sampling.sample import Drawing, draw

STREAMS = 64  # streams that a text is scored in, side by side


@dataclass(frozen=True)
class Scored:
    """One line of text and what the model made of it. nats: -log p of each character and of the newline after it."""

    line: str
    nats: np.ndarray

    @property
    def total(self) -> float:
        return float(self.nats.sum())

    @property
    def mean(self) -> float:
        return float(self.nats.mean())


class CharLM:
    """A character model and its vocabulary.

    model: the torch module, in eval mode; saved: the checkpoint it came from.
    """

    def __init__(self, model: CharModel, saved: Checkpoint):
        self.model, self.saved = model, saved
        self.vocab = saved.vocab
        self.config: TrainConfig = configs.from_json(saved.config)

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> CharLM:
        """The model in a checkpoint. name: a file, the folder of a run, or a model that comes along (`names`)."""
        path = checkpoint.locate(str(name))
        saved = checkpoint.read(path)
        try:
            config = configs.from_json(saved.config)
        except CharLMError as error:
            raise CharLMError(f"{path} is damaged: its configuration is wrong ({error})") from error
        model = CharModel(len(saved.vocab), config.hidden_size, config.num_layers, config.embedding_dim)
        try:
            model.load_state_dict({key: value.float() for key, value in saved.weights.items()})
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise CharLMError(f"{path} is damaged: its weights do not fit its configuration ({first})") from error
        return cls(model.eval().to(torch.device(device)), saved)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the model alone into a checkpoint, in torch.float16 for half the size. Raises CharLMError."""
        weights = {name: value.to(dtype) for name, value in self.model.state_dict().items()}
        checkpoint.write(Path(path), replace(self.saved, weights=weights, train={}, run={}))

    @property
    def of_lines(self) -> bool:
        """Whether it learned items, one a line."""
        return self.config.lines

    def drawing(self, **options: Any) -> Drawing:
        """How to draw from this model: one item from a model of lines unless a length or a stop is given."""
        if self.of_lines and options.get("length") is None and options.get("stop") is None:
            options.update(length=1000, stop="\n")
        return Drawing(**{name: value for name, value in options.items() if value is not None})

    def sample(self, num: int | None = None, **options: Any) -> str | list[str]:
        """Draw text; the prime, if there is one, is part of it.

        num: how many at once, None for one string; options: those of `sample.Drawing` (length, temperature, prime, …).
        """
        drawing = self.drawing(num=num, **options)
        texts = [drawing.prime + text for text in draw(self.model, self.vocab, drawing)]
        return texts[0] if num is None else texts

    def corpus(self, name: str | None = None) -> Corpus:
        """A text read as this model's own was. name: None for that text itself, which must be what it was.

        Of another list every item counts, also one that came before.
        """
        config = self.config
        reading = Reading(config.encoding, config.bytes, config.lines, unique=config.split == "lines")
        if name is not None:
            text = load(name, replace(reading, unique=False), self.vocab)
            own = reading.unique and self.learned(text)
            return load(name, reading, self.vocab) if own else text
        was = self.saved.corpus
        text = load(was["name"], reading, self.vocab)
        if not self.learned(text):
            raise CharLMError(
                f"{was['name']} is not the text this model learned: it changed since; put that text back, or name "
                "another where one can be named"
            )
        return text

    def learned(self, corpus: Corpus) -> bool:
        """Whether a text is the one that this model learned, by its bytes."""
        return corpus.sha256 == self.saved.corpus["sha256"]

    def divide(self, corpus: Corpus) -> Data:
        """The model's corpus, divided as it was in training."""
        config = self.config
        return splits.divide(corpus, config.split, config.val_frac, config.batch_size, config.seq_length, config.seed)

    def held(self, corpus: Corpus, part: str) -> Held:
        """What is scored of a text: `all` of it or, of the model's own corpus, the `val` or `train` part."""
        if part == "all":
            return self._everything(corpus.ids)
        data = self.divide(corpus)
        if part == "val":
            return data.val
        return self._everything(np.concatenate([corpus.ids[start:stop] for start, stop in data.train_spans]))

    def _everything(self, ids: np.ndarray) -> Held:
        """All of a text, the first character predicted from a newline where there is one."""
        if "\n" not in self.vocab:
            return splits.held_out(ids, 0, STREAMS)
        newline = self.vocab.encode("\n")
        return splits.held_out(np.concatenate([newline, ids]), 1, STREAMS)

    def evaluate(self, name: str | None = None, part: str | None = None) -> Evaluation:
        """The loss on a file, folder or built-in corpus.

        name: None for the model's own corpus; part: all, train or val; by default val of its own, whatever its name, and
        all of another.
        """
        corpus = self.corpus(name)
        part = part or ("val" if self.learned(corpus) else "all")
        return evaluate(self.model, self.vocab, self.held(corpus, part))

    def baseline(self, held: Held, orders: int = 6) -> list[float]:
        """Nats a character of n-grams counted on the model's training text, n = 1 … orders, for what is held."""
        corpus = self.corpus()
        train = np.concatenate([corpus.ids[start:stop] for start, stop in self.divide(corpus).train_spans])
        positions = targets(held)
        return [nats / len(positions) for nats in NGrams(train, len(self.vocab), orders).nats(held.ids, positions)]

    def score(self, lines: Iterable[str]) -> list[Scored]:
        """Each line's log-probability: of a model of lines each by itself, of others read one after another."""
        lines = list(lines)
        text = self.vocab.from_text("\n" + "\n".join(lines) + "\n")
        ids = self.vocab.encode(text, "the text")
        lengths = np.array([len(self.vocab.from_text(line)) + 1 for line in lines], np.int64)
        starts = np.cumsum(lengths) - lengths  # of each line's first prediction, made at the newline before it
        nats = np.empty(len(ids), np.float32)
        if self.of_lines:
            for group in np.array_split(np.argsort(lengths, kind="stable"), -(-len(lines) // 256)):
                alone = Held(ids, starts[group], np.zeros_like(group), lengths[group])
                where = targets(alone)
                nats[where] = nats_by_position(self.model, alone)[where]
        else:
            nats = nats_by_position(self.model, splits.held_out(ids, 1, 1))
        return [Scored(line, nats[s + 1 : s + 1 + n]) for line, s, n in zip(lines, starts, lengths, strict=True)]
