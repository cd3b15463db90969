"""`CharLM`: a trained model with its vocabulary, to sample from, to evaluate and to score text with."""

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
from .data.corpus import Corpus, CorpusOptions, find, load
from .data.recorded import find_recorded, without_paths
from .data.splits import CorpusSplit, EvalText
from .errors import CharLMError
from .evaluate import Evaluation, evaluate, nats_by_position, targets
from .model import CharModel
from .ngram import NGrams
from .sampling.sample import Sampling, sample_texts

EVAL_STREAMS = 64  # streams side by side that a text is evaluated in


@dataclass(frozen=True)
class Scored:
    """One scored line. nats: -log p of each character and of the newline after it, (len + 1,) float32."""

    line: str
    nats: np.ndarray

    @property
    def total(self) -> float:
        return float(self.nats.sum())

    @property
    def mean(self) -> float:
        return float(self.nats.mean())


class CharLM:
    """A trained character model.

    Args:
        model: the torch module, in eval mode
        saved: the checkpoint it was loaded from
    """

    def __init__(self, model: CharModel, saved: Checkpoint):
        self.model, self.saved = model, saved
        self.vocab = saved.vocab
        self.config: TrainConfig = configs.from_json(saved.config)

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu") -> CharLM:
        """Load a model.

        Args:
            name: a checkpoint, the folder of a run, or a model of the package (`names`)
            device: of the weights

        Raises:
            CharLMError: there is no such checkpoint, or it is damaged.
        """
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
        """Write the model, without the state of its run, to a checkpoint.

        Args:
            path: of the file
            dtype: of the weights; torch.float16 halves the file

        Raises:
            CharLMError: the file cannot be written.
        """
        weights = {name: value.to(dtype) for name, value in self.model.state_dict().items()}
        corpus = without_paths(self.saved.corpus)  # the file may go to another machine
        checkpoint.write(Path(path), replace(self.saved, corpus=corpus, weights=weights, train={}, run={}))

    @property
    def of_lines(self) -> bool:
        """True if the model was trained on one item a line."""
        return self.config.lines

    def sampling(self, **options: Any) -> Sampling:
        """Sampling options with this model's defaults: one item of a model of lines, unless length or stop is given."""
        if self.of_lines and options.get("length") is None and options.get("stop") is None:
            options.update(length=1000, stop="\n")
        return Sampling(**{name: value for name, value in options.items() if value is not None})

    def sample(self, num: int | None = None, **options: Any) -> str | list[str]:
        """Sample text from the model.

        Args:
            num: number of samples; None for a single string
            options: fields of `sampling.sample.Sampling`: length, temperature, top_k, top_p, prime, stop, seed, …

        Returns:
            The text, prime included, or a list of `num` texts.

        Raises:
            CharLMError: an option is out of range, or the prime has characters outside the vocabulary.
        """
        sampling = self.sampling(num=num, **options)
        texts = [sampling.prime + text for text in sample_texts(self.model, self.vocab, sampling)]
        return texts[0] if num is None else texts

    def corpus(self, name: str | None = None) -> Corpus:
        """Read a text with the options of the model's own corpus; in other lists repeated items stay.

        Args:
            name: file, folder or name of a corpus; None for the model's own

        Raises:
            CharLMError: the text cannot be read, has characters outside the vocabulary, or is no longer the text that
                the model was trained on (name None).
        """
        config = self.config
        corpus_options = CorpusOptions(config.encoding, config.bytes, config.lines, unique=config.split == "lines")
        if name is not None:
            found = find(name, corpus_options)  # once: a pipe is read once
            text = load(name, replace(corpus_options, unique=False), self.vocab, source_and_note=found)
            own = corpus_options.unique and self.is_own_corpus(text)
            return load(name, corpus_options, self.vocab, source_and_note=found) if own else text
        was = self.saved.corpus
        found = find_recorded(was, self.saved.folder, corpus_options)
        text = load(was["name"], corpus_options, self.vocab, source_and_note=found, unknown=config.unknown)
        if not self.is_own_corpus(text):
            raise CharLMError(
                f"{was['name']} is not the text this model learned: it changed since; put that text back, or name "
                "another where one can be named"
            )
        return text

    def is_own_corpus(self, corpus: Corpus) -> bool:
        """True if a corpus is the one that the model was trained on, by its SHA-256."""
        return corpus.sha256 == self.saved.corpus["sha256"]

    def divide(self, corpus: Corpus) -> CorpusSplit:
        """Divide the model's corpus as in training."""
        config = self.config
        return splits.divide(corpus, config.split, config.val_frac, config.batch_size, config.seq_length, config.seed)

    def eval_text(self, corpus: Corpus, part: str) -> EvalText:
        """The part of a corpus to evaluate on: `all` or, of the model's own corpus, `val` or `train`."""
        if part == "all":
            return self._all_text(corpus.ids)
        data = self.divide(corpus)
        if part == "val":
            return data.val
        return self._all_text(np.concatenate([corpus.ids[start:stop] for start, stop in data.train_spans]))

    def _all_text(self, ids: np.ndarray) -> EvalText:
        """All of a text; its first character is predicted from a newline if the vocabulary has one."""
        if "\n" not in self.vocab:
            return splits.held_out(ids, 0, EVAL_STREAMS)
        newline = self.vocab.encode("\n")
        return splits.held_out(np.concatenate([newline, ids]), 1, EVAL_STREAMS)

    def evaluate(self, name: str | None = None, part: str | None = None) -> Evaluation:
        """The loss on a text.

        Args:
            name: file, folder or name of a corpus; None for the model's own
            part: `all`, `train` or `val`; by default `val` of the model's own corpus and `all` of any other

        Raises:
            CharLMError: as for `corpus`.
        """
        corpus = self.corpus(name)
        part = part or ("val" if self.is_own_corpus(corpus) else "all")
        return evaluate(self.model, self.vocab, self.eval_text(corpus, part))

    def baseline(self, eval_text: EvalText, orders: int = 6) -> list[float]:
        """Loss of n-grams counted on the model's training text, in nats a character, for n = 1 … orders."""
        corpus = self.corpus()
        train = np.concatenate([corpus.ids[start:stop] for start, stop in self.divide(corpus).train_spans])
        positions = targets(eval_text)
        return [nats / len(positions) for nats in NGrams(train, len(self.vocab), orders).nats(eval_text.ids, positions)]

    def score(self, lines: Iterable[str]) -> list[Scored]:
        """Log-probability of each line; a model of lines scores each by itself, others read them as one text."""
        lines = list(lines)
        text = self.vocab.from_text("\n" + "\n".join(lines) + "\n")
        ids = self.vocab.encode(text, "the text")
        lengths = np.array([len(self.vocab.from_text(line)) + 1 for line in lines], np.int64)
        starts = np.cumsum(lengths) - lengths  # of each line's first prediction, made at the newline before it
        nats = np.empty(len(ids), np.float32)
        if self.of_lines:
            for group in np.array_split(np.argsort(lengths, kind="stable"), -(-len(lines) // 256)):
                line_by_line = EvalText(ids, starts[group], np.zeros_like(group), lengths[group])
                where = targets(line_by_line)
                nats[where] = nats_by_position(self.model, line_by_line)[where]
        else:
            nats = nats_by_position(self.model, splits.held_out(ids, 1, 1))
        return [Scored(line, nats[s + 1 : s + 1 + n]) for line, s, n in zip(lines, starts, lengths, strict=True)]
